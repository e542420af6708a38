"""A local page for people who do not code: choose pictures, train, try what was learnt."""

from frostline.studio.serving import Server as Server
