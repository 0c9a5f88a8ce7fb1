"""The threads in which large bodies are parsed and large responses written."""

import asyncio
import contextvars
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

NUM_THREADS = 2
"""Threads of pure Python share the interpreter with the event loop, each a switch interval at a time: with more of them,
small requests would wait for many intervals whenever the loop gives the interpreter up."""

_threads: ThreadPoolExecutor | None = None


async def off_loop(work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    """Return what a function returns, run in one of `NUM_THREADS` threads; raises what it raises."""
    global _threads
    if _threads is None:
        _threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="parse")
    context = contextvars.copy_context()
    call = functools.partial(context.run, work, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_threads, call)
