"""Tables of latencies, from file to the JSON that others read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from testbed.audit import known
from testbed.audit.compliance import Verdict, judge
from testbed.audit.record import Promise, audit_series
from testbed.audit.table import TableError, audit_table, read_series
from testbed.telemetry import request_samples, samples
from tests.unit.audit import asking
from tests.unit.audit.test_folder import window as packets

PROMISE = Promise(deadline_s=25.0, epsilon=0.001)


def write(path: Path, columns: dict[str, list[object] | np.ndarray]) -> Path:
    """A table as CSV or Parquet by the name's ending; NaN becomes an empty cell."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({k: pa.array(v, from_pandas=True) for k, v in columns.items()}), path)
        return path
    cells = [
        ["" if value is None or value in {"", "nan"} else value for value in map(str, v)] for v in columns.values()
    ]
    rows = [",".join(row) for row in zip(*cells, strict=True)]
    path.write_text("\n".join([",".join(columns), *rows]) + "\n")
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_csv_and_parquet_say_the_same_as_the_series(tmp_path: Path, name: str) -> None:
    series = known.mm1(0.5).draw(30_000, np.random.default_rng(1))
    series[::5000] = np.nan
    document = audit_table(write(tmp_path / name, {"latency_s": series}), PROMISE).to_dict()
    found = judge(series, 25.0, 0.001)
    assert document["verdict"] == found.verdict
    assert document["n"] == 30_000
    assert document["misses"] == found.misses
    assert document["unanswered"] == 6
    assert document["n_effective"] == pytest.approx(30_000 / document["design_effect"])
    assert document["extremal_index"] == pytest.approx(found.extremal_index)
    assert document["miss_rate_upper"] == pytest.approx(found.miss_rate_upper)
    assert document["blame"] == {}


def test_the_json_names_are_those_that_others_rely_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    slow, fast = rng.exponential(0.01, 30_000), rng.exponential(0.001, 30_000)
    path = write(tmp_path / "t.parquet", {"latency_s": slow + fast, "domain_a_s": slow, "domain_b_s": fast})
    document = json.loads(json.dumps(audit_table(path, Promise(0.2, 0.001)).to_dict(), allow_nan=False))
    assert document["verdict"] == "PASS"
    assert set(document["quantiles"]) == {"0.99", "0.999", "0.9999"}
    assert set(document["quantiles"]["0.999"]) >= {"estimate_s", "lower_s", "upper_s"}
    assert set(document["blame"]) == {"a", "b"}
    assert set(document["blame"]["a"]) == {"euler", "shapley"}
    assert set(document["blame"]["a"]["euler"]) == {"share", "lower", "upper"}
    assert document["named"] == "a"


def test_what_the_data_cannot_say_is_null(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", {"latency_s": np.random.default_rng(3).random(500)})
    document = audit_table(path, PROMISE).to_dict()
    assert document["verdict"] == "UNDETERMINED"
    assert document["design_effect"] is None
    assert document["quantiles"]["0.9999"] == {
        "estimate_s": None,
        "lower_s": None,
        "upper_s": None,
        "one_sided_lower_s": None,
    }


def test_rows_are_put_in_order_of_run_and_time(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    series = known.mm1(0.7).draw(20_000, rng)
    shuffle = rng.permutation(20_000)
    columns = {"latency_s": series, "time_s": np.arange(20_000) % 10_000 * 1.0, "run": np.arange(20_000) // 10_000}
    shuffled = {name: values[shuffle] for name, values in columns.items()}
    (found,) = read_series(write(tmp_path / "t.csv", shuffled))
    assert found.latency_s == pytest.approx(series)
    assert found.runs.tolist() == columns["run"].tolist()
    first, second = (audit_table(write(tmp_path / "u.csv", c), PROMISE).to_dict() for c in (columns, shuffled))
    assert first == second


def test_each_tenant_is_judged_on_its_own_and_the_worst_comes_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    columns = {
        "latency_s": np.concatenate([rng.exponential(0.01, 20_000), rng.exponential(0.1, 20_000)]),
        "tenant": ["good"] * 20_000 + ["bad"] * 20_000,
    }
    found = audit_table(write(tmp_path / "t.parquet", columns), Promise(0.15, 0.001))
    document = found.to_dict()
    assert found.verdict is Verdict.FAIL
    assert document["tenant"] == "bad"
    assert document["n"] == 20_000
    assert {name: part["verdict"] for name, part in document["tenants"].items()} == {"bad": "FAIL", "good": "PASS"}


def test_twenty_runs_are_also_judged_as_replications(tmp_path: Path) -> None:
    columns = {"latency_s": np.random.default_rng(6).exponential(1.0, 60_000), "run": np.arange(60_000) // 3000}
    document = audit_table(write(tmp_path / "t.parquet", columns), Promise(5.0, 0.001)).to_dict()
    assert document["replications"]["verdict"] == "FAIL"
    assert document["replications"]["runs"] == 20


def test_what_no_domain_accounts_for_is_a_part_of_its_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    parts = rng.exponential(0.01, (2, 20_000))
    path = write(tmp_path / "t.parquet", {"latency_s": parts.sum(axis=0), "domain_a_s": parts[0]})
    assert set(audit_table(path).to_dict()["blame"]) == {"a", "elsewhere"}


def test_without_a_promise_there_is_no_verdict_but_everything_else(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", {"latency_s": np.random.default_rng(8).exponential(1, 20_000)})
    document = audit_table(path).to_dict()
    assert document["verdict"] is None
    assert document["design_effect"] >= 1
    assert document["quantiles"]["0.999"]["upper_s"] > document["quantiles"]["0.999"]["estimate_s"]


def test_domains_that_explain_nothing_are_said_to(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", {"latency_s": [0.5] * 2000, "domain_a_s": [0.5] * 2000})
    assert any("No blame" in said for said in audit_table(path).to_dict()["findings"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time_s\n1\n", "found columns time_s, expected latency_s"),
        ("latency_s\n", "found no rows"),
        ("latency_s\n0.1\n-0.2\n", "row 2 has latency_s -0.2"),
        ("latency_s\n0.1\n\nfast\n", "row 3 has latency_s 'fast', expected a number"),
        ("latency_s,time_s\n0.1,1\nNaN,2\n", "row 2 has latency_s NaN.* 1 of 2 rows"),
        ("latency_s\nNA\n", "row 1 has latency_s 'NA'"),
        ("latency_s\n1_000\n", "row 1 has latency_s '1_000'"),
        ("latency_s\n-inf\n", "row 1 has latency_s -inf"),
        ("latency_s,domain_a_s\n0.1,0.1\n0.1,-1\n", "row 2 has domain_a_s -1"),
        ("", "not a readable table"),
        ("latency_s,latency_s\n0.1,0.2\n", "column latency_s more than once"),
        ("latency_s,time_s\n0.1,1\n0.1,2,3\n", "row 2 has 3 cells, expected 2"),
        ("latency_s,time_s\n0.1,1\n0.1,\n", "row 2 has no time_s"),
        ("latency_s\n0.1,0.2\n", "row 1 has 2 cells, expected 1"),
        (
            ",".join(["latency_s", *(f"domain_{i}_s" for i in range(20))]) + "\n" + ",".join(["1"] * 21) + "\n",
            "20 domains",
        ),
    ],
)
def test_a_table_that_cannot_be_audited_says_what_to_change(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(TableError, match=message):
        audit_table(path, PROMISE)


@pytest.mark.parametrize(
    "text", ["latency_s\n0.1\n\n0.2\n\n\n0.3\n", "latency_s,run\n0.1,a\n,a\n0.2,a\n,a\n,a\n0.3,a\n"]
)
def test_an_empty_cell_is_a_request_never_answered_even_on_a_line_of_its_own(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    (found,) = read_series(path)
    assert found.latency_s == pytest.approx([0.1, np.nan, 0.2, np.nan, np.nan, 0.3], nan_ok=True)


@pytest.mark.parametrize("header", ['"latency_s", time_s', "\ufefflatency_s,time_s", "latency_s ,time_s\r"])
def test_a_header_with_quotes_blanks_or_marks_is_understood(tmp_path: Path, header: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{header}\n0.2,2\n0.1,1\n", encoding="utf-8")
    (found,) = read_series(path)
    assert found.latency_s.tolist() == [0.1, 0.2]


def test_not_a_number_in_parquet_is_refused_and_a_null_is_not(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"latency_s": pa.array([0.1, None])}), path)
    (found,) = read_series(path)
    assert found.latency_s == pytest.approx([0.1, np.nan], nan_ok=True)
    pq.write_table(pa.table({"latency_s": pa.array([0.1, None, np.nan])}), path)
    with pytest.raises(TableError, match="row 3 has latency_s NaN"):
        list(read_series(path))


@pytest.mark.parametrize("old", [False, True], ids=["as written now", "as written when a lost packet was a NaN"])
def test_the_samples_of_a_runs_window_are_a_table_with_a_tenant_and_its_domains(tmp_path: Path, old: bool) -> None:
    sent = packets(1, 20_000)
    border = sent.border_s.copy()
    border[::100, 2:] = np.nan
    path = tmp_path / "window-1.parquet"
    samples.write(path, replace(sent, border_s=border))
    if old:
        stored = pq.read_table(path)
        pq.write_table(pa.table([stored[c].to_numpy() for c in stored.column_names], schema=stored.schema), path)
    (found,) = read_series(path)
    assert (found.tenant, list(found.parts)) == ("alice", ["access", "metro", "core"])
    assert np.count_nonzero(np.isnan(found.latency_s)) == 200
    document = audit_table(path, Promise(0.025, 0.001)).to_dict()
    assert (document["verdict"], document["unanswered"], document["n"]) == ("FAIL", 200, 20_000)
    assert set(document["blame"]) == {"access", "metro", "core", "elsewhere"}


def test_a_window_of_requests_is_a_table_of_those_that_were_due(tmp_path: Path) -> None:
    path = tmp_path / "window-1.parquet"
    request_samples.write(path, asking.failed(asking.window(1), timeout=7, to_come=100))
    (found,) = read_series(path)
    assert (found.tenant, found.latency_s.size) == ("vision", 19_900)
    assert np.count_nonzero(np.isnan(found.latency_s)) == 7
    assert list(found.parts) == ["client wait", "west", "east", "server queue", "compute", "network back", "residual"]


def test_a_window_in_which_nothing_was_due_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "window-1.parquet"
    request_samples.write(path, asking.failed(asking.window(1, 10), to_come=10))
    with pytest.raises(TableError, match="no requests of vision that were due"):
        list(read_series(path))


def test_whole_numbers_first_do_not_make_a_column_of_whole_numbers(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("latency_s,time_s,domain_a_s\n" + "1,2,\n" * 300_000 + "0.5,2.5,0.25\n")
    (found,) = read_series(path)
    assert (found.latency_s[-1], found.parts["a"][-1]) == (0.5, 0.25)


def test_a_column_of_words_in_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="column latency_s holds string, expected numbers"):
        audit_table(write(tmp_path / "t.parquet", {"latency_s": ["fast"]}))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"nowhere\.csv"):
        audit_table(tmp_path / "nowhere.csv")


def test_a_quantile_beyond_what_was_answered_is_said_to_have_no_value() -> None:
    series = known.exponential().draw(50_000, np.random.default_rng(9))
    series[np.random.default_rng(10).random(series.size) < 0.005] = np.inf
    said = audit_series(series, Promise(12.0, 0.001)).sentences()
    assert "p99.9 has no value: more than 0.001 of them were never answered." in said
    assert any(sentence.startswith("p99 is ") for sentence in said)


def test_findings_are_sentences_with_the_verdict_first() -> None:
    said = audit_series(known.exponential().draw(50_000, np.random.default_rng(9)), Promise(12.0, 0.001)).sentences()
    assert said[0].endswith("0.001 was promised.")
    assert any(sentence.startswith("p99.9 is ") for sentence in said)
    assert any("overrules nothing" in sentence for sentence in said)
    assert all(sentence.endswith(".") for sentence in said)


def test_the_interval_of_a_fitted_tail_says_where_it_may_be_too_short() -> None:
    rng = np.random.default_rng(5)
    queue = known.mm1(0.5).draw(50_000, rng)
    fitted = [
        next(said for said in audit_series(latency).sentences() if "fitted tail" in said)
        for latency in (queue, rng.permutation(queue))
    ]
    assert ["may be too short" in said for said in fitted] == [True, False]
