"""Schedules of cron as Kubernetes and KubeRay read them: `ParseStandard` of robfig/cron v3."""

import re

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
FIELDS = (
    (0, 59, {}),
    (0, 23, {}),
    (1, 31, {}),
    (1, 12, dict(zip(MONTHS, range(1, 13), strict=True))),
    (0, 6, dict(zip(DAYS, range(7), strict=True))),
)
"""The least, the most and the names of minutes, hours, days, months and days of the week."""
DESCRIPTORS = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")


def is_schedule(text: str) -> bool:
    """Return whether a text is a schedule of five fields, or one of the words for some."""
    if text.startswith("@"):
        return (
            text in DESCRIPTORS
            or re.fullmatch(r"@every (\d+(\.\d*)?(ns|us|µs|ms|s|m|h))+", text) is not None
        )
    fields = text.split()
    return len(fields) == len(FIELDS) and all(
        _is_field(field, *bounds) for field, bounds in zip(fields, FIELDS, strict=True)
    )


def _is_field(field: str, least: int, most: int, names: dict[str, int]) -> bool:
    return all(_is_range(part, least, most, names) for part in field.split(","))


def _is_range(part: str, least: int, most: int, names: dict[str, int]) -> bool:
    found = re.fullmatch(r"(?:[*?]|(\w+)(?:-(\w+))?)(?:/(\d+))?", part)
    if found is None or found[3] == "0":
        return False
    ends = [
        names.get(end.lower(), int(end) if end.isdigit() else -1)
        for end in found.group(1, 2)
        if end is not None
    ]
    return all(least <= end <= most for end in ends) and ends == sorted(ends)
