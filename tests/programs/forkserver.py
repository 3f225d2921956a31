"""Starts programs in processes that have torch, DeepSpeed and transformers imported already: forkserver.py SOCKET.

A rank spends most of a short test importing. Here each is a fork of a process that did so once; from then on it is a process like any
other: it parses its command line, joins its process group, can be killed.

Each connection asks for one program, as a line of JSON (`argv`, `env`, `cwd`, `out`, `err`), and gets two lines: `{"pid": ...}`, and
when it has ended `{"code": ...}` (negative: the signal that killed it).
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"

import deepspeed
import deepspeed.runtime.zero.muon.muon_optimizer
import hydra
import matplotlib
import rich.progress
import transformers.integrations
import transformers.modeling_utils

import moss_train.artifacts.export
import moss_train.cli
import moss_train.data.tokenizer
import moss_train.inference.generate
import moss_train.model.loading
import moss_train.pretrain.data
import moss_train.pretrain.main
import moss_train.sft.data
import moss_train.sft.main
import moss_train.train.stage

matplotlib.use("Agg")
import matplotlib.pyplot

PRELOADED = (deepspeed, hydra, matplotlib.pyplot, rich.progress, transformers.integrations, transformers.modeling_utils, moss_train)


def become(request: dict[str, Any]) -> NoReturn:
    """Runs the program asked for, in this process."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for path, descriptor in ((request["out"], 1), (request["err"], 2)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = list(request["argv"])
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    code = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def main(path: str) -> None:
    """Serves until the process that started this one is gone."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    wake_read, wake_write = os.pipe()
    for end in (wake_read, wake_write):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(wake_read, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    waiting: dict[int, socket.socket] = {}
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                return
            if key.fileobj is listener:
                connection, _ = listener.accept()
                request = json.loads(connection.makefile().readline())
                pid = os.fork()
                if pid == 0:
                    listener.close()
                    connection.close()
                    become(request)
                connection.sendall(f'{{"pid": {pid}}}\n'.encode())
                waiting[pid] = connection
            elif key.fileobj == wake_read:
                with contextlib.suppress(BlockingIOError):
                    while os.read(wake_read, 4096):
                        pass
        for pid in list(waiting):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                with waiting.pop(pid) as connection, contextlib.suppress(OSError):
                    connection.sendall(f'{{"code": {os.waitstatus_to_exitcode(status)}}}\n'.encode())


if __name__ == "__main__":
    main(sys.argv[1])
