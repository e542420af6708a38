"""What runs wrote, for people: one run's report, several side by side, how to do it again."""

from frostline.reports.judging import Judgement as Judgement
from frostline.reports.judging import check_table_path as check_table_path
from frostline.reports.report import RunReport as RunReport
from frostline.reports.report import course_charts as course_charts
from frostline.reports.reporting import make_report as make_report
from frostline.reports.reporting import promise_at_end as promise_at_end
from frostline.reports.reporting import promise_of as promise_of
