"""Files: an exact round trip, whole or not at all, and a damaged file says where."""

import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stabviz.trace import Trace, load, save

FORMATS = ["jsonl", "parquet"]
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.just("NaN"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def traces(draw):
    R, S = draw(st.integers(1, 3)), draw(st.integers(0, 5))
    dtypes = {"loss_nats": np.float32, "grad_norm_preclip/block0": np.float64}
    signals = {
        name: draw(hnp.arrays(dtype, (R, S), elements=st.floats(width=dtype(0).itemsize * 8)))
        for name, dtype in dtypes.items()
    }
    gaps = draw(hnp.arrays(np.int64, S, elements=st.integers(1, 10**6)))
    runs = [draw(st.dictionaries(st.text(), PLAIN)) for _ in range(R)]
    return Trace(
        steps=np.cumsum(gaps),
        signals=signals,
        runs=runs,
        config=draw(st.dictionaries(st.text(), PLAIN, max_size=3)),
        events=[{"run": 0, "step": 3, "kind": "note", "value": draw(st.floats())}],
    )


def small(S=7):
    loss = np.linspace(4, 2, 3 * S).reshape(3, S)
    loss[1, 5:] = [math.inf, math.nan][: S - 5] if S > 5 else math.nan
    return Trace(steps=range(S), signals={"loss_nats": loss}, runs=[{"seed": r} for r in range(3)])


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(trace=traces())
def test_save_and_load_round_trip_is_exact(tmp_path, format, trace):
    path = save(trace, tmp_path / f"t.{format}")
    back = load(path)
    assert back.equals(trace)
    for name, values in trace.signals.items():  # signs of zero too, which == does not see
        assert np.array_equal(np.signbit(back[name]) & (values == 0), np.signbit(values) & (values == 0))


def test_save_jsonl_is_strict_json_line_by_line(tmp_path):
    def refuse(word):
        raise AssertionError(word)

    lines = save(small(), tmp_path / "t.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    assert rows[0]["schema"] == "stabviz.trace/1"
    assert len(rows) == 8
    assert rows[6]["values"]["loss_nats"][1] == {"$float": "Infinity"}
    assert rows[7]["values"]["loss_nats"][1] == {"$float": "NaN"}


def test_load_reads_the_spelling_of_earlier_versions(tmp_path):
    path = save(small(), tmp_path / "t.jsonl")
    old = (
        path.read_text().replace('{"$float": "NaN"}', '"NaN"').replace('{"$float": "Infinity"}', '"Infinity"')
    )
    assert "$float" not in old
    path.write_text(old)
    assert load(path).equals(small())


def test_save_parquet_is_long_and_keeps_nan_apart_from_null(tmp_path):
    import pyarrow.parquet as pq

    table = pq.read_table(save(small(), tmp_path / "t.parquet"))
    assert table.column_names == ["run", "step", "loss_nats"]
    assert table["loss_nats"].null_count == 0
    assert table["run"].to_pylist()[6:8] == [0, 1]


@pytest.mark.parametrize("format", FORMATS)
def test_save_leaves_the_old_file_when_it_fails(tmp_path, format, monkeypatch):
    path = save(small(), tmp_path / f"t.{format}")
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save(small(5), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: lines[:-2], r"t\.jsonl line 7: must hold 7 steps; got 5"),
        (lambda lines: [*lines[:-1], lines[-1][:20]], r"t\.jsonl line 8: must be one whole step"),
        (
            lambda lines: [*lines[:3], lines[3].replace('"step"', '"stop"'), *lines[4:]],
            r"line 4: must be one whole",
        ),
        (
            lambda lines: [*lines[:3], lines[3].replace("[", "[1.0, "), *lines[4:]],
            r"line 4: .*4 values for 3 runs",
        ),
        (
            lambda lines: [*lines[:5], '{"step": 4, "values": {"loss_nats": ["high", 1, 1]}}', *lines[6:]],
            "line 6: .*'high'",
        ),
        (
            lambda lines: [lines[0].replace("trace/1", "trace/9"), *lines[1:]],
            "line 1: schema must be .*got .*trace/9",
        ),
        (lambda lines: [lines[0][:30], *lines[1:]], "line 1: must be a Trace header"),
        (lambda lines: ["{}", *lines[1:]], "line 1: must be a Trace header"),
        (
            lambda lines: ['{"schema": "stabviz.trace/1"}', *lines[1:]],
            "line 1: header must be whole; .*'config'",
        ),
        (lambda lines: [], "line 1: must be a Trace header"),
    ],
)
def test_load_jsonl_names_file_and_line_of_the_damage(tmp_path, damage, message):
    path = save(small(), tmp_path / "t.jsonl")
    path.write_text("\n".join(damage(path.read_text().splitlines())))
    with pytest.raises(ValueError, match=message):
        load(path)


def test_load_parquet_names_the_damaged_file(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = save(small(), tmp_path / "t.parquet")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"t\.parquet: must be a whole Parquet file"):
        load(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(ValueError, match=r"t\.parquet: must carry a Trace header"):
        load(path)


@pytest.mark.parametrize("format", FORMATS)
def test_load_of_a_missing_file_says_so(tmp_path, format):
    with pytest.raises(FileNotFoundError, match=f"nothing.{format}"):
        load(tmp_path / f"nothing.{format}")


def test_save_and_load_refuse_other_formats(tmp_path):
    with pytest.raises(ValueError, match=r"trace.save: path must end in .jsonl or .parquet; got .*t.csv"):
        save(small(), tmp_path / "t.csv")
    with pytest.raises(ValueError, match=r"trace.load: path must end in"):
        load(tmp_path / "t.csv")
