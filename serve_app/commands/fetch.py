"""`siglip-serve fetch`: a checkpoint into the cache, ahead of a service that may not ask the
hub.
"""

from pathlib import Path

from serve_app.config.service import parse_config
from serve_app.siglip.hub import load_checkpoint
from serve_app.terminal.printable import print_line


def fetch(model: str, revision: str | None) -> int:
    """Download a checkpoint unless it is here, check its files, and print where it lies and which
    commit it is.

    Args:
        model: A hub id, one of the plugin's short names, a folder or `demo`.
        revision: Branch, tag or commit; None for the main branch.

    Raises:
        ConfigError: It is not there or not to be had; says what to do.
    """
    plugin = parse_config({"labels": ["picture"], "plugins": {"siglip": {"model": model}}}).siglip
    checkpoint = load_checkpoint(plugin.model_source, revision)
    print_line(f"{plugin.model_shown} is in {checkpoint.folder}")
    if (
        not Path(plugin.model_source).expanduser().is_dir()
    ):  # but of the hub's cache, where folders are called by their commits
        print_line(f"revision: {checkpoint.folder.name}")
    return 0
