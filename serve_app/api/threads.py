"""Worker threads that parse large bodies and write large responses."""

import asyncio
import contextvars
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

NUM_THREADS = 2
"""Number of worker threads. Pure-Python threads share the GIL with the event loop, one switch
interval each. With more threads, the event loop would wait for many intervals whenever it releases
the GIL."""

_threads: ThreadPoolExecutor | None = None


async def off_loop(
    work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """Run a function in one of `NUM_THREADS` threads; return its result or raise its error."""
    global _threads
    if _threads is None:
        _threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="parse")
    context = contextvars.copy_context()
    call = functools.partial(context.run, work, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_threads, call)
