"""Rows of manifests: text stays text, bad rows affect no others, columns may vary."""

import csv
import datetime
import io
import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.batch.csv_rows import MAX_RECORD_CHARS, csv_rows
from serve_app.batch.cutting import Cut
from serve_app.batch.inputs import find_inputs
from serve_app.batch.json_rows import json_rows
from serve_app.batch.options import BatchOptions
from serve_app.batch.output_files import Writing
from serve_app.batch.reading import read_inputs
from serve_app.batch.rows import TAG, ImageFacts, Stamp, make_rows
from serve_app.batch.storage import Storage, url_of
from serve_app.batch.table_rows import ROWS, join_tables
from tests.conftest import encoded, random_picture
from tests.odd_names import write
from tests.unit.batch.test_inputs import everything, options_for

PICTURE = encoded(random_picture(8, 8, 1))
VALUES = [
    "00123",
    "1e5",
    "true",
    "TRUE",
    "2024-01-31",
    "2024-01-31T10:00:00Z",
    "10:30",
    "NaN",
    "null",
    "None",
    "",
    " x ",
    "1.0",
    "-0",
]
"""Texts that readers like to take for something else."""
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def output_of(rows: pa.Table, folder: Path) -> list[Path]:
    """Write the rows of a job without images, in chunks of two."""
    written = []
    writing = Writing(Storage(), url_of(str(folder)), "parquet", "zstd", embeddings=False)
    for number, (chunk, _) in enumerate(Cut(2).chunks(iter([rows]))):
        made = make_rows(
            chunk,
            [ImageFacts()] * len(chunk),
            pa.nulls(len(chunk), pa.list_(TAG)),
            None,
            Stamp("c", None, "v"),
        )
        path = folder / f"part-{number}.parquet"
        path.write_bytes(writing.encode(made))
        written.append(path)
    return written


def test_columns_of_csv_pass_through_as_text(tmp_path: Path) -> None:
    """To what a reader of the output sees, each chunk with the same types."""
    given_rows = [
        {"uri": f"{at}.png", "sku": value, "n": str(at)} for at, value in enumerate(VALUES)
    ]
    write_csv(tmp_path / "m.csv", given_rows)
    rows, _ = everything(options_for(tmp_path / "m.csv"))
    parts = output_of(rows, tmp_path)
    for part in parts:
        types = {
            name: kind
            for name, kind, *_ in duckdb.sql(f"describe select * from '{part}'").fetchall()
        }
        assert (types["sku"], types["n"]) == ("VARCHAR", "VARCHAR")
    found = duckdb.sql(
        f"select uri, sku, n from '{tmp_path}/part-*.parquet' order by n::int"
    ).fetchall()
    assert found == [(row["uri"], row["sku"], row["n"]) for row in given_rows]


@given(
    st.lists(
        st.lists(TEXT.filter(lambda text: "\0" not in text), min_size=3, max_size=3),
        min_size=1,
        max_size=8,
    )
)
def test_any_csv_is_read_as_it_was_written(rows: list[list[str]]) -> None:
    """Commas, quotes, newlines, spaces and empty fields included."""
    sink = io.StringIO(newline="")
    csv.writer(sink).writerows([["uri", "b", "c"], *rows])
    tables = [part.table for part in csv_rows(io.BytesIO(sink.getvalue().encode()), ["uri"])]
    found = pa.concat_tables(tables).to_pylist()
    assert [list(row.values()) for row in found] == rows


def test_a_column_may_be_empty_for_long_and_change_its_type_later(tmp_path: Path) -> None:
    """Over many thousands of rows, in CSV and JSON Lines."""
    count = 3 * ROWS
    values: list[Any] = [None] * ROWS + [7] * ROWS + ["x1"] * ROWS
    write_csv(
        tmp_path / "m.csv",
        [
            {"uri": f"{at}.png", "v": "" if value is None else str(value)}
            for at, value in enumerate(values)
        ],
    )
    tables = list(find_inputs(options_for(tmp_path / "m.csv")).tables)
    assert {table.schema.field("v").type for table in tables} == {pa.string()}
    assert sum(len(table) for table in tables) == count
    lines = (json.dumps({"uri": f"{at}.png", "v": value}) for at, value in enumerate(values))
    (tmp_path / "m.jsonl").write_text("\n".join(lines) + "\n")
    tables = list(find_inputs(options_for(tmp_path / "m.jsonl")).tables)
    found = pa.concat_tables(tables)["v"].to_pylist()
    assert found == [None] * ROWS + ["7"] * ROWS + ["x1"] * ROWS


@settings(deadline=None)
@given(
    st.lists(
        st.dictionaries(st.sampled_from("abc"), JSON, max_size=3), min_size=1, max_size=6
    ).filter(any)
)
def test_any_json_lines_can_be_read_and_stored(rows: list[dict[str, Any]]) -> None:
    """Whatever types a key's values have; texts and numbers of one type stay what they are."""
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    table = pa.concat_tables([part.table for part in json_rows(data)])
    pq.write_table(table, io.BytesIO())
    assert len(table) == len(rows)
    for name in table.column_names:
        given_values = [row.get(name) for row in rows]
        if all(value is None or isinstance(value, str) for value in given_values):
            assert table[name].to_pylist() == given_values
            assert table[name].type == pa.string()
        assert [value is None for value in table[name].to_pylist()] == [
            value is None for value in given_values
        ]


@pytest.mark.parametrize("value", ["2024-01-31", "2024-01-31T10:00:00Z", "00123"])
def test_texts_of_json_lines_that_look_like_dates_stay_text(tmp_path: Path, value: str) -> None:
    """A reader of pyarrow makes timestamps of them."""
    (tmp_path / "m.jsonl").write_text(json.dumps({"uri": "a.png", "day": value}) + "\n")
    rows, _ = everything(options_for(tmp_path / "m.jsonl"))
    assert rows["day"].to_pylist() == [value]


def test_a_malformed_row_of_csv_costs_itself(tmp_path: Path) -> None:
    """Such as too many fields, an open quote or an endless line; a short row has empty fields."""
    write(tmp_path, "a.png", PICTURE)
    long = b"a.png," + b"x" * (2 * MAX_RECORD_CHARS) + b"\n"
    lines = [
        b"uri,n\n",
        b"a.png,1\n",
        b"a.png,2,3\n",
        b"a.png\n",
        b'a.png,"open\n',
        b"a.png,4\n",
        long,
        b"\n",
        b"a.png,5",
    ]
    write(tmp_path, "m.csv", b"".join(lines))
    rows, data = everything(options_for(tmp_path / "m.csv"))
    manifest = f"{tmp_path}/m.csv"
    assert rows["uri"].to_pylist() == [
        *(
            "a.png",
            f"{manifest}#line-3",
            "a.png",
            f"{manifest}#line-5",
            "a.png",
            f"{manifest}#line-7",
            "a.png",
        ),
    ]
    assert rows["n"].to_pylist() == ["1", None, "", None, "4", None, "5"]
    assert [bool(one) for one in data] == [True, False, True, False, True, False, True]


def test_a_malformed_line_of_json_costs_itself(tmp_path: Path) -> None:
    """No JSON, no object, not UTF-8, or too deep."""
    write(tmp_path, "a.png", PICTURE)
    deep = b'{"uri": "a.png", "x": ' + b"[" * 100 + b"]" * 100 + b"}"
    lines = [
        b'{"uri": "a.png"}',
        b"{",
        b"[1]",
        b"",
        b'{"uri": "\xe9.png"}',
        deep,
        b'{"uri": "a.png"}',
        b"",
    ]
    write(tmp_path, "m.jsonl", b"\n".join(lines))
    rows, data = everything(options_for(tmp_path / "m.jsonl"))
    assert [uri.rpartition("#")[2] for uri in rows["uri"].to_pylist()] == [
        "a.png",
        "line-2",
        "line-3",
        "line-5",
        "line-6",
        "a.png",
    ]
    assert data == [PICTURE, b"", b"", b"", b"", PICTURE]


def test_a_name_that_is_not_utf8_is_found(tmp_path: Path) -> None:
    """In the column of names; in another one such bytes become escapes."""
    write(tmp_path, b"caf\xe9.png", PICTURE)
    write(tmp_path, "m.csv", b"uri,n\ncaf\xe9.png,\xe9\n")
    rows, data = everything(options_for(tmp_path / "m.csv"))
    assert data == [PICTURE]
    assert rows["n"].to_pylist() == [r"\xe9"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_rows_may_name_images_by_any_path(tmp_path: Path, kind: str) -> None:
    """Rows keep what was written; an unknown scheme and a missing name are errors of their rows."""
    write(tmp_path, "a.png", PICTURE)
    write(tmp_path, "in/b.png", PICTURE)
    good = [
        "../a.png",
        "./b.png",
        "b.png",
        "x/../../a.png",
        str(tmp_path / "in/../a.png"),
        f"file://{tmp_path}/./a.png",
    ]
    bad = [
        "ftp://host/a.png",
        "",
        "../../../../../../../../../../gone.png",
        "http://[::1/a.png",
        "null\0byte.png",
    ]
    uris = [*good, *bad]
    path = tmp_path / f"in/m.{kind}"
    if kind == "csv":
        write_csv(path, [{"uri": uri, "n": ""} for uri in uris])
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"uri": uri}) + "\n" for uri in uris))
    else:
        pq.write_table(pa.table({"uri": uris}), path)
    (tmp_path / "in/x").mkdir()
    rows, data = everything(options_for(path))
    assert data == [PICTURE] * len(good) + [b""] * len(bad)
    assert rows["uri"].to_pylist()[: len(good)] == good


def test_parts_may_have_different_columns_and_types(tmp_path: Path) -> None:
    """A missing column is null and one of mixed types is text; partitions have a place for both."""
    parts = [
        {"uri": ["0.png", "1.png"], "day": ["mon", ""], "n": [1, 2]},
        {"uri": ["2.png"], "n": [2.5]},
        {"uri": ["3.png"], "day": [None], "n": ["x"]},
        {"uri": ["4.png"], "day": [["list"]], "n": [{"a": 1}]},
    ]
    for at, part in enumerate(parts):
        pq.write_table(pa.table(part), tmp_path / f"{at}.parquet")
    [(rows, _)] = Cut(10).chunks(find_inputs(options_for(tmp_path)).tables)
    assert rows["n"].to_pylist() == ["1", "2", "2.5", "x", '{"a": 1}']
    assert rows["day"].to_pylist() == ["mon", "", None, None, '["list"]']
    cut = {
        part: rows["uri"].to_pylist()
        for rows, part in Cut(10, partition_by="day").chunks(
            find_inputs(options_for(tmp_path)).tables
        )
    }
    assert cut == {
        "day=mon": ["0.png"],
        "day=__HIVE_DEFAULT_PARTITION__": ["1.png", "2.png", "3.png"],
        "day=%5B%22list%22%5D": ["4.png"],
    }


@pytest.mark.parametrize(
    ("values", "folder"),
    [
        (pa.array([datetime.date(2024, 1, 1)]), "v=2024-01-01"),
        (
            pa.array([datetime.datetime(2024, 1, 1, 3)], pa.timestamp("ms")),
            "v=2024-01-01 03%3A00%3A00.000",
        ),
        (pa.array([Decimal("1.50")]), "v=1.50"),
        (pa.array([1.0]), "v=1"),
        (pa.array([True]), "v=true"),
        (pa.array([b"mon"]), "v=mon"),
        (pa.array([b"\xff"]), "v=%5Cxff"),
        (pa.array(["mon"]).dictionary_encode(), "v=mon"),
        (pa.array([UUID(int=1).bytes], pa.uuid()), f"v={UUID(int=1)}"),
        (pa.array([[datetime.date(2024, 1, 1)]]), "v=%5B%222024-01-01%22%5D"),
    ],
)
def test_partitions_have_the_names_that_arrow_writes(
    tmp_path: Path, values: pa.Array, folder: str
) -> None:
    """Without the quotes of JSON, except in lists and structs."""
    pq.write_table(pa.table({"uri": ["a.png"], "v": values}), tmp_path / "m.parquet")
    [(_, part)] = Cut(10, partition_by="v").chunks(
        find_inputs(options_for(tmp_path / "m.parquet")).tables
    )
    assert part == folder


def test_dates_beside_texts_are_texts_without_quotes(tmp_path: Path) -> None:
    """If one manifest has a column of dates, and another one text."""
    pq.write_table(
        pa.table({"uri": ["0.png"], "day": [datetime.date(2024, 1, 1)]}), tmp_path / "0.parquet"
    )
    pq.write_table(pa.table({"uri": ["1.png"], "day": ["2024-01-02"]}), tmp_path / "1.parquet")
    rows, _ = everything(options_for(tmp_path))
    assert rows["day"].to_pylist() == ["2024-01-01", "2024-01-02"]


def rows_of_csv(text: str) -> list[dict[str, str] | int]:
    """Return the rows of a CSV file; the line number of one that is malformed."""
    [(table, malformed)] = csv_rows(io.BytesIO(text.encode()), ["uri"])
    return [malformed.get(place, row) for place, row in enumerate(table.to_pylist())]


def test_rows_within_a_malformed_record_are_read() -> None:
    """An open quote joins several lines to a record, which then has too many fields."""
    assert rows_of_csv('uri,sku\na.jpg,"19\nb.jpg,1\nc.jpg,2\nd.jpg,x",3,4\ne.jpg,5\n') == [
        2,
        {"uri": "b.jpg", "sku": "1"},
        {"uri": "c.jpg", "sku": "2"},
        5,
        {"uri": "e.jpg", "sku": "5"},
    ]


@pytest.mark.parametrize("start", ["\n", "\r\n\r\n", "\ufeff\n", ",,\n", "  \n"])
def test_the_first_line_that_is_not_blank_is_the_header(start: str) -> None:
    """And lines are counted from the first one of the file."""
    lines = start.count("\n")
    assert rows_of_csv(f"{start}uri,n\na.jpg,1\nb.jpg,2,3\n") == [
        {"uri": "a.jpg", "n": "1"},
        lines + 3,
    ]


def test_a_file_of_blank_lines_has_no_header() -> None:
    """Which is said."""
    with pytest.raises(ValueError, match="it is empty: it has no line that names the columns"):
        rows_of_csv("\n\n,,\n")


def test_commas_at_the_end_of_rows_add_no_field() -> None:
    """Some programs write them; a field with content is one too many, a long line an error."""
    assert rows_of_csv("uri,n\na.jpg,1,\nb.jpg,2,,,\nc.jpg,3,,4\n") == [
        {"uri": "a.jpg", "n": "1"},
        {"uri": "b.jpg", "n": "2"},
        4,
    ]
    long = "x" * (2 * MAX_RECORD_CHARS)
    assert rows_of_csv(f'uri,n\na.jpg,"1\n{long}\nb.jpg,2\n') == [2, 3, {"uri": "b.jpg", "n": "2"}]


@pytest.mark.parametrize(
    "values",
    [[2**53 + 1] * ROWS + [1.5], [1.5] * ROWS + [2**53 + 1], [[2**53 + 1]] * ROWS + [[1.5]]],
)
def test_a_column_of_json_lines_has_one_type(values: list[Any]) -> None:
    """Over the whole file, also if its first rows and its last ones fit no common type exactly."""
    data = "".join(json.dumps({"uri": "a.png", "n": value}) + "\n" for value in values).encode()
    tables = [part.table for part in json_rows(data)]
    assert [table.schema.field("n").type for table in tables] == [pa.string(), pa.string()]
    assert pa.concat_tables(tables)["n"].to_pylist() == [json.dumps(value) for value in values]


def test_small_integers_beside_fractions_are_doubles() -> None:
    """On any page."""
    data = "".join(json.dumps({"n": value}) + "\n" for value in [7] * ROWS + [1.5]).encode()
    assert {part.table.schema.field("n").type for part in json_rows(data)} == {pa.float64()}


def test_numbers_that_are_not_finite_cost_no_row(tmp_path: Path) -> None:
    """Python's `json` writes them; they are null, and a number that is too large is text."""
    write(tmp_path, "a.png", PICTURE)
    row = '{"uri": "a.png", "x": NaN, "y": [Infinity, 1.5], "z": -Infinity, "big": 1e999}\n'
    write(tmp_path, "m.jsonl", (row + '{"uri": "a.png", "x": 2.5}\n').encode())
    rows, data = everything(options_for(tmp_path / "m.jsonl"))
    assert data == [PICTURE] * 2
    found = rows.select(["x", "y", "z", "big"]).to_pylist()
    assert found[0] == {"x": None, "y": [None, 1.5], "z": None, "big": "1e999"}
    assert found[1] == {"x": 2.5, "y": None, "z": None, "big": None}


def errors_of(options: BatchOptions) -> list[str]:
    """Return the messages of the inputs that cannot be read."""
    inputs = find_inputs(options)
    reads = read_inputs(
        join_tables(list(inputs.tables)), inputs.kind, inputs.image_column, options.storage, 10**6
    )
    return [str(read.error) for read in reads if read.error is not None]


def test_a_name_with_a_null_character_is_a_sentence(tmp_path: Path) -> None:
    """Wherever the row leads."""
    (tmp_path / "m.jsonl").write_text(
        json.dumps({"uri": "null\0byte.png"})
        + "\n"
        + json.dumps({"uri": "s3://bucket/a\0b.png"})
        + "\n"
    )
    assert (
        errors_of(options_for(tmp_path / "m.jsonl"))
        == ["The object cannot be read: its name contains a null character."] * 2
    )


def test_an_error_of_a_malformed_row_says_what_its_format_allows(tmp_path: Path) -> None:
    """CSV has fields and quotes, JSON Lines has objects."""
    write(tmp_path, "a.csv", b"uri\na.png\nb.png,1\n")
    write(tmp_path, "b.jsonl", b'{"uri": "a.png"}\n[1]\n')
    told = [text for text in errors_of(options_for(tmp_path)) if "This line" in text]
    assert told == [
        f"This line of {tmp_path}/a.csv cannot be read: it has more fields than the header "
        "or a quote without its end, or is too long.",
        f"This line of {tmp_path}/b.jsonl cannot be read: it is not a JSON object.",
    ]


def test_links_before_dots_are_resolved_once_for_many_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not again for every row, which would cost several system calls each."""
    count = 100
    write_csv(tmp_path / "m.csv", [{"uri": f"../in/{at % 2}/../{at}.png"} for at in range(count)])
    resolved: list[str] = []
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path: resolved.append(path) or real(path))
    [table] = find_inputs(options_for(tmp_path / "m.csv")).tables
    assert len(table) == count
    assert len(resolved) == 2


def test_a_table_of_another_kind_among_images_in_parquet_is_one_error_row(tmp_path: Path) -> None:
    """And a part without the column of images has errors in its own rows only."""
    pq.write_table(pa.table({"image": [PICTURE], "n": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"n": [2]}), tmp_path / "b.parquet")
    write(tmp_path, "c.csv", b"uri\nx.png\n")
    rows, data = everything(options_for(tmp_path))
    assert rows["uri"].to_pylist() == [
        f"{tmp_path}/a.parquet#0",
        f"{tmp_path}/b.parquet#0",
        f"{tmp_path}/c.csv#damaged",
    ]
    assert data == [PICTURE, b"", b""]
