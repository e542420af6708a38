"""What all tests share: one thread, the real data where there are any, and nothing left behind."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from warm_process import Start, warm_process

_REPOSITORY = Path(__file__).parents[1]
# Written by the test runner between a test's phases, by torch when it first compiles, and by
# scikit-learn when it is imported.
_NOT_OURS = {
    "PYTEST_CURRENT_TEST",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",
    "KMP_DUPLICATE_LIB_OK",
    "KMP_INIT_AT_FORK",
}
# Written by Lightning when it is imported: whoever asks for CUDA then looks for a driver each time.
_BY_LIGHTNING = "PYTORCH_NVML_BASED_CUDA_CHECK"


def pytest_configure() -> None:
    """One thread, in this process and in those that tests start.

    Tensors of tests are small: two threads would wait for one another, the more so since other
    tests run beside this one. Bits depend on the number of threads, so children have the same.
    """
    gc.set_threshold(20_000, 20, 50)  # a trace makes so many objects: few collections find any
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    if find_spec("hypothesis") is not None:  # the browser's tests do without
        from hypothesis import settings

        settings.register_profile("tests", deadline=None)  # a busy machine is no mistake
        settings.load_profile("tests")


def pytest_unconfigure() -> None:
    gc.unfreeze()  # an extension tells its objects that are left in the end as leaked


@pytest.fixture
def two_threads() -> Iterator[None]:
    """For what must hold with the threads that users have."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def permissions_hold() -> Iterator[None]:
    """Also for root, as which containers run: Linux lets it past them by two capabilities."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "capset"):
        pytest.skip("root may write anywhere here")
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # the third version, this thread
    effective_permitted_inherited = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, effective_permitted_inherited) == 0
    before = effective_permitted_inherited[0]
    effective_permitted_inherited[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, effective_permitted_inherited) == 0
    yield
    effective_permitted_inherited[0] = before
    assert libc.capset(header, effective_permitted_inherited) == 0


@pytest.fixture(autouse=True, scope="session")
def _own_features(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A feature store for this session, so that no test reads or fills the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FROSTLINE_FEATURES", str(tmp_path_factory.mktemp("features")))
        yield


@pytest.fixture(autouse=True, scope="module")
def _quick_collections() -> None:
    """What is alive when a module's tests begin is looked at no more by the garbage collector.

    torch, the tests and what torch.export keeps for good are millions of objects: a collection
    that goes through them all takes a second, and operations on many small objects make many.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    if torch.cuda.is_initialized():
        torch.manual_seed(0)
    else:  # which keeps the stack of each call for when it is, and pytest's is deep
        torch.default_generator.manual_seed(0)


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    environment = _environment()
    threads = set(threading.enumerate())
    yield
    if _BY_LIGHTNING not in environment:
        os.environ.pop(_BY_LIGHTNING, None)
    more = [t for t in threading.enumerate() if t not in threads and not t.daemon]
    for thread in more:  # transformers' loading does not wait for its own to end
        thread.join(timeout=5)
    left = [thread.name for thread in more if thread.is_alive()]
    changed = {name for name, _ in environment.items() ^ _environment().items()}
    assert not changed, f"the test leaks environment variables: {sorted(changed)}"
    assert not left, f"the test leaks threads: {left}"


@pytest.fixture(scope="session")
def start() -> Iterator[Start]:
    """`frostline ARGUMENTS` in a process of its own, without its imports."""
    with warm_process() as started:
        yield started


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data: `$FROSTLINE_DATA`, or `shared/data` beside the repository."""
    given = os.environ.get("FROSTLINE_DATA")
    folder = Path(given) if given else _REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real data: neither $FROSTLINE_DATA nor ../shared/data is a folder")
    return folder


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _NOT_OURS}
