"""A notebook executed in a kernel of its own, which leaves nothing behind however it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from liftlab import forks, run_log
from liftlab.parameters import RunError, papermill_path, quiet_papermill


class NotebookFailed(RunError):
    """A notebook was executed and one of its cells failed, or its kernel died."""


def execute(source: Path, output: Path, values: dict[str, Any], root: Path) -> None:
    """Run every cell with papermill, in the root; `output` is written as it goes.

    NotebookFailed for a failing cell or a dying kernel; OSError where the output cannot be written.
    """
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import CellTimeoutError
    from traitlets.config import Config

    kernel = {"kernel_name": "python3", "language": "python", "progress_bar": False, "cwd": str(root)}
    kernel["config"] = Config(KernelManager={"transport_encryption": "auto"})  # other users of the machine may listen
    kernel["kernel_manager_class"] = _manager(run_log.printed(source.stem))
    try:
        with _clean_environment(source.stem), quiet_papermill():
            papermill.execute_notebook(papermill_path(source), papermill_path(output), values, **kernel)
    except papermill.PapermillExecutionError as error:
        line = " ".join(f"{error.ename}: {error.evalue}".split())
        raise NotebookFailed(f"in cell [{error.exec_count}]: {line}") from error
    except (RuntimeError, CellTimeoutError) as error:  # Jupyter's words for a kernel that died, as it started or later
        raise NotebookFailed(f"because its kernel died or hung: {error}") from error
    except NoSuchKernel as error:
        raise RunError("Jupyter kernel 'python3' is not installed here: pip install ipykernel") from error


def _manager(printed: Path | None) -> type:
    """Jupyter's manager of a kernel, whose stderr goes to the file `printed`, if given.

    Where a kernel dies by itself, this one ends the processes that it had started.
    """
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_client.provisioning import LocalProvisioner

    class Manager(AsyncKernelManager):
        async def start_kernel(self, **settings: Any) -> None:
            with ExitStack() as opened:
                if printed is not None:
                    settings["stderr"] = opened.enter_context(printed.open("ab"))
                await self._async_start_kernel(**settings)

        async def _async_launch_kernel(self, kernel_cmd: list[str], **settings: Any) -> None:
            """As a fork, where this process was forked and keeps a spare one for it."""
            local, spare = self.provisioner, forks.spare
            child = spare.becomes(kernel_cmd, **settings) if spare and isinstance(local, LocalProvisioner) else None
            if child is None:
                return await super()._async_launch_kernel(kernel_cmd, **settings)
            local.process, local.pid, local.pgid = child, child.pid, child.pid

        async def _async_interrupt_kernel(self) -> None:
            """Not as it shuts down: a kernel that is just done with its last cell would report a KeyboardInterrupt."""
            if not self.shutting_down:
                await super()._async_interrupt_kernel()

        async def cleanup_resources(self, restart: bool = False) -> None:
            group = getattr(self.provisioner, "pgid", None)
            if group and self.provisioner.has_process and await self.provisioner.poll() is not None:
                _end_group(group)
            await self._async_cleanup_resources(restart)

    return Manager


def _end_group(group: int) -> None:
    """SIGTERM to a process group, if anyone is left in it."""
    try:
        os.killpg(group, signal.SIGTERM)
    except ProcessLookupError:
        return


# glibc keeps what is freed, rather than give a step's activations back and fault them in again at the next step
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
LEFT = ("MPLBACKEND", "JPY_PARENT_PID", "JPY_SESSION_NAME", "PAPERMILL_OUTPUT_PATH")  # by another Jupyter


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """What of `given` a kernel gets, and what it gets beside."""
    kept = {variable: value for variable, value in given.items() if variable not in LEFT}
    return KEEP_MEMORY | kept | {"JUPYTER_PREFER_ENV_PATH": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


@contextmanager
def _clean_environment(name: str) -> Iterator[None]:
    """The kernel is this interpreter's own and shows figures, whatever the shell or another Jupyter left behind."""
    kept = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment(kept) | {run_log.NOTEBOOK: name})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)
