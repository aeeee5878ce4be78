"""Jupyter kernels that start in a blink: forks of one process that has imported what the chapters import.

    python workflow/kernels.py serve FOLDER [MODULE …]   until its standard input closes; JUPYTER_PATH=FOLDER uses it
    python workflow/kernels.py start FOLDER ARGUMENT …   what the kernel specification in FOLDER calls

A kernel is a process of its own, with the environment, working folder and output of whoever asked for it, and dies with
them, not with the server. Where nobody serves FOLDER (any more), or on another machine of a cluster, an ordinary kernel
starts instead.
"""

import contextlib
import importlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

# What chapters and the library import late, and what takes long; the library's own modules are found by their files.
# None may start a thread, for a fork has one alone (but pyarrow's jemalloc, which takes care of its own).
MODULES = (
    "ipykernel.zmqshell",
    "matplotlib.pyplot",
    "pyarrow.parquet",
    "sklearn.model_selection",
    "statsmodels.stats.multitest",
    "timm",
)


def library() -> list[str]:
    """Every module of hpatlib by name, but for the command line."""
    paths = sorted(path.with_suffix("") for path in Path("hpatlib").rglob("*.py") if not path.stem.startswith("__main"))
    return [".".join(path.parts).removesuffix(".__init__") for path in paths]


def serve(folder: Path, modules: Iterable[str]) -> None:
    """Fork a kernel for each connection to ``folder``/socket, until standard input closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the workflow, whose end closes our input
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as ipykernel sets it
    here = str(folder / "socket")
    start = [sys.executable, "-S", __file__, "start", str(folder), "-f", "{connection_file}"]
    specification = {"argv": start, "display_name": "Python 3", "language": "python", "interrupt_mode": "message"}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(here)
        listener.listen()
        (folder / "kernels" / "python3").mkdir(parents=True)
        (folder / "kernels" / "python3" / "kernel.json").write_text(json.dumps(specification))
        warm = False
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if not warm:  # not before the first chapter asks: often there is none to run
                for module in modules:
                    with contextlib.suppress(Exception):  # the chapter that needs it will say what is wrong
                        importlib.import_module(module)
                warm = True
            if os.fork() == 0:
                listener.close()
                become_kernel(connection)
                return
            connection.close()
    shutil.rmtree(folder, ignore_errors=True)  # whoever made it may have been killed
    os._exit(0)


def become_kernel(connection: socket.socket) -> None:
    """Turn this fork into the kernel that the process behind ``connection`` asked for."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    asked = json.loads(connection.makefile().readline())
    connection.sendall(b".")
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    sys.argv = ["ipykernel_launcher", *asked["arguments"]]
    threading.Thread(target=lambda: connection.recv(1) or os._exit(1), daemon=True).start()  # dies with its asker
    from ipykernel.kernelapp import launch_new_instance

    # Its parent is the server, which may end before it; 1, the process that never ends, is not watched.
    launch_new_instance([*asked["arguments"], "--IPKernelApp.parent_handle=1"])


def start(folder: Path, arguments: list[str]) -> None:
    """Ask the server for a kernel and stay as long as it and the asker live; without a server, become one."""
    asked = {"environment": dict(os.environ), "folder": os.getcwd(), "arguments": arguments}
    asker, taken = os.getppid(), b""
    with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
        connection.connect(str(folder / "socket"))
        socket.send_fds(connection, [b"."], [0, 1, 2])
        connection.sendall(json.dumps(asked).encode() + b"\n")
        while os.getppid() == asker:  # where the asker is killed, the kernel ends as this does
            if select.select([connection], [], [], 1)[0]:
                if not (said := connection.recv(1)):
                    break
                taken = said
    if not taken and os.getppid() == asker:  # nobody serves, or the server has ended before it came to us
        os.execv(sys.executable, [sys.executable, "-m", "ipykernel_launcher", *arguments])


if __name__ == "__main__":
    action, folder, *rest = sys.argv[1:]
    if action == "start":
        start(Path(folder), rest)
    else:
        del sys.path[0]  # this script's folder, which is none of the chapters' business
        serve(Path(folder), rest or (*MODULES, *library()))
