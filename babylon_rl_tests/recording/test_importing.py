"""Imports: each trajectory once, in our tables, as it was; nothing of a file is lost, whatever happens meanwhile."""

import gzip
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from babylon_rl import cli
from babylon_rl.database.connect import Database
from babylon_rl.errors import RecordingError
from babylon_rl.recording import importing
from babylon_rl.recording.checking import check_line
from babylon_rl.recording.importing import check_file, import_file
from babylon_rl.recording.reader import read_window
from babylon_rl.recording.recorder import write_runs
from babylon_rl.recording.survey import survey
from babylon_rl_tests.recording.lines import as_bytes, call, line, row, step
from babylon_rl_tests.recording.runs import WINDOW, add_agents, add_row, make_run

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "recording.md"
ODD = "e\u0301 \u202e\u05d0\u2028\u200b\U0001f680 <|im_end|> \\u0000 \x00 \ud800 " + "x" * 200_000


def write(path: Path, *values, end: bytes = b"\n") -> str:
    path.write_bytes(b"\n".join(v if isinstance(v, bytes) else as_bytes(v) for v in values) + end)
    return str(path)


def rows_of(database: Database, table: str, columns: str = "*") -> list[tuple]:
    with database.connect() as connection:
        return connection.execute(f"SELECT {columns} FROM babylon_rl.{table} ORDER BY 1").fetchall()


def counts(database: Database) -> list[int]:
    return [len(rows_of(database, name)) for name in ("trajectories", "llm_call_logs", "recorded_calls")]


def test_lines_and_rows_are_written_as_they_were_each_once(database, tmp_path):
    extra = step(3, stepId="s3", llmCalls=[call(response=ODD, reasoning=None)], observation={"deep": [1]})
    name = write(tmp_path / "a.jsonl", line("t1", steps=[step(), extra], metadata={"k": 1}), row("t2"), line("t1"))
    report = import_file(database, name)
    assert (report.written, report.known, report.wrong, report.windows) == (2, 1, 0, {WINDOW})
    assert counts(database) == [2, 2, 2]
    (first, second) = rows_of(
        database,
        "trajectories",
        '"trajectoryId", id, "stepsJson", "endTime"::text, "finalPnL", "windowId", "metadataJson"',
    )
    assert second == ("t2", "id-t2", row("t2")["stepsJson"], "2025-01-15 10:55:00.123", 0.0, None, "{}")
    wanted = [step(), extra]
    for one in wanted:
        for of_step in one["llmCalls"]:
            of_step.pop("tokens")
    assert json.loads(first[2]) == wanted and json.loads(first[6]) == {"k": 1}
    assert first[3:6] == ("2025-01-15 10:55:00", 3.5, WINDOW)
    (logged,) = [r for (i, r) in rows_of(database, "llm_call_logs", '"callId", response') if i == "t1-call-3-0"]
    assert logged == ODD.replace("\x00", "").replace("\ud800", "\ufffd")
    kept = rows_of(database, "recorded_calls", "call_id, step_number, token_ids, logprobs, checkpoint, temperature")
    assert kept == [(f"t1-call-{n}-0", n, [7, 2], [-0.5, 0.0], "base", 1.0) for n in (0, 3)]
    again = import_file(database, name)
    assert (again.written, again.known) == (0, 3) and counts(database) == [2, 2, 2]


def test_what_the_application_recorded_is_known_and_its_tables_are_not_written(database, tmp_path):
    with database.connect() as connection:
        add_agents(connection, "agent-1")
        write_runs(connection, [make_run("t1")])
        before = connection.execute("SELECT t::text FROM trajectories t").fetchall()
    report = import_file(database, write(tmp_path / "a.jsonl", line("t1"), line("t2", agentId="nobody")))
    assert (report.written, report.known) == (1, 1)
    with database.connect() as connection:
        assert connection.execute("SELECT t::text FROM trajectories t").fetchall() == before
    assert [name for (name,) in rows_of(database, "trajectories", '"trajectoryId"')] == ["t2"]


def test_a_dump_of_the_applications_table_comes_in_as_it_was(database, new_database, tmp_path, _template):
    with database.connect() as connection:
        add_agents(connection, "agent-1")
        write_runs(connection, [make_run(f"t{n}") for n in range(3)])
        with connection.cursor().copy("COPY (SELECT row_to_json(t) FROM trajectories t) TO STDOUT") as dumped:
            (tmp_path / "dump.jsonl").write_bytes(b"".join(dumped))
        before = connection.execute('SELECT t::text FROM trajectories t ORDER BY "trajectoryId"').fetchall()
    other = new_database(template=_template)
    assert import_file(other, str(tmp_path / "dump.jsonl")).written == 3
    with other.connect() as connection:
        query = 'SELECT t::text FROM babylon_rl.trajectories t ORDER BY "trajectoryId"'
        assert connection.execute(query).fetchall() == before


def test_rejected_lines_are_kept_with_their_reason_and_the_rest_is_written(database, tmp_path):
    cut = as_bytes(line("t9"))[:-30]
    taken = row("t4", id="id-t3")
    name = write(
        tmp_path / "a.jsonl", line("t1"), line("t2", agentId=7), b'{"a": "\xff"}', b"", row("t3"), taken, cut, end=b""
    )
    report = import_file(database, name)
    assert (report.written, report.known, report.wrong) == (2, 0, 4)
    kept = [json.loads(one) for one in Path(f"{name}.rejected").read_bytes().splitlines()]
    found = {one["line"]: one["problems"][0]["path"] for one in kept}
    assert found == {2: "agentId", 3: "", 6: "id", 7: ""} and report.rejected_path == f"{name}.rejected"
    assert json.loads(kept[0]["text"]) == line("t2", agentId=7) and "base64" in kept[1]
    assert "end of the file" in next(one for one in kept if one["line"] == 7)["problems"][0]["found"]
    assert import_file(database, write(tmp_path / "a.jsonl", line("t1"))).rejected_path is None
    assert not Path(f"{name}.rejected").exists(), "mended lines leave no trace of an earlier import"


def test_a_dry_run_counts_and_writes_nothing(database, tmp_path):
    name = write(tmp_path / "a.jsonl", line("t1"), line("t2", agentId=7))
    report = import_file(database, name, dry_run=True)
    assert (report.written, report.wrong) == (1, 1) and counts(database) == [0, 0, 0]
    assert list(tmp_path.iterdir()) == [tmp_path / "a.jsonl"]


@pytest.mark.parametrize("after", range(1, 9))
def test_an_interrupted_import_is_repeated_to_the_same_end(database, tmp_path, monkeypatch, after):
    """Interrupted at some statement of some batch: each batch is there whole or not at all."""
    monkeypatch.setattr(importing, "BATCH_LINES", 2)
    name = write(tmp_path / "a.jsonl", *(line(f"t{n}") for n in range(6)))
    insert, left = importing._insert, [after]

    def interrupted(*arguments):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return insert(*arguments)

    monkeypatch.setattr(importing, "_insert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_file(database, name)
    there = counts(database)
    assert len(set(there)) == 1 and there[0] == (after - 1) // 3 * 2
    monkeypatch.setattr(importing, "_insert", insert)
    report = import_file(database, name)
    assert (report.written, report.known) == (6 - there[0], there[0]) and counts(database) == [6, 6, 6]


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(RecordingError, match="cannot be read"):
        check_file(str(tmp_path / "none.jsonl"))


def test_a_file_that_is_not_there_is_told_before_the_others_are_imported(database, tmp_path):
    good, none = write(tmp_path / "good.jsonl", line("t1")), str(tmp_path / "none.jsonl")
    done = CliRunner().invoke(cli.app, ["recording", "import", good, none, "--database", database.url])
    assert isinstance(done.exception, RecordingError) and counts(database) == [0, 0, 0]


def test_what_windows_programs_put_before_the_text_is_no_part_of_it(tmp_path):
    name = write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + as_bytes(line("t1")), as_bytes(line("t2")), end=b"\r\n")
    assert (check_file(name).trajectories, check_file(name).wrong) == (2, 0)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (gzip.compress(as_bytes(line())), "compressed.*gzip -dc"),
        ((json.dumps(line()) + "\n").encode("utf-16"), "UTF-16"),
    ],
)
def test_a_file_that_is_no_text_in_utf8_is_told_once_and_not_line_by_line(tmp_path, content, told):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(RecordingError, match=told):
        check_file(str(tmp_path / "a.jsonl"))


def test_the_commands_tell_what_is_wrong_and_end_with_it(database, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    good, bad = write(tmp_path / "good.jsonl", line("t1")), write(tmp_path / "bad.jsonl", line("t2", agentId=7))
    done = CliRunner().invoke(cli.app, ["recording", "check", good, bad])
    assert done.exit_code == 1 and f"{bad}:1 t2: agentId: found the number 7, wanted a text" in done.output
    done = CliRunner().invoke(cli.app, ["recording", "check", "-", "--json"], input=as_bytes(line("t1")))
    told = json.loads(done.stdout)
    assert done.exit_code == 0 and told["ok"] and told["files"][0]["trajectories"] == 1
    done = CliRunner().invoke(cli.app, ["recording", "import", good, bad, "--json", "--database", database.url])
    told = json.loads(done.stdout)
    assert done.exit_code == 1 and {k: told[k] for k in ("written", "known", "rejected", "windows")} == {
        "written": 1, "known": 0, "rejected": 1, "windows": [WINDOW],
    }  # fmt: skip
    done = CliRunner().invoke(cli.app, ["recording", "import", good, "--dry-run", "--database", database.url])
    assert done.exit_code == 0 and "0 would be written, 1 known already, 0 rejected." in done.output
    schema = CliRunner().invoke(cli.app, ["recording", "schema"])
    assert json.loads(schema.stdout)["$defs"]


def test_the_documents_example_passes(tmp_path):
    examples = re.findall(r"```json\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert examples
    for example in examples:
        report = check_file(write(tmp_path / "a.jsonl", example.strip().encode()))
        assert (report.trajectories, report.wrong, report.cautions) == (1, 0, {})


def test_imported_recordings_are_read_as_the_check_said_and_once(database, tmp_path):
    lines = {
        "good": line("good"),
        "one": line("one", finalPnL=None),
        "none": line("none", finalPnL=None, steps=[step(environmentState={})]),
        "off-hour": line("off-hour", windowId="2025-01-15T10:30"),
        "label": line("label", windowId="benchmark-1"),
        "untold": line("untold", steps=[step(llmCalls=[])]),
        "pending": line("pending", steps=[step(action={"actionType": "pending", "parameters": {}, "success": False})]),
    }
    cautions = {name: set(check_line(as_bytes(value)).cautions) for name, value in lines.items()}
    import_file(database, write(tmp_path / "a.jsonl", *lines.values(), row("in-both")))
    with database.connect() as connection:
        add_agents(connection, "agent-1")
        add_row(connection, "in-both", isEvaluation=True)  # the application's own is the one that counts
    with database.recordings() as recordings:
        window = read_window(recordings, WINDOW)
        surveyed = {one.trajectory_id: one for one in survey(recordings)}
    usable = {one.trajectory_id: one for one in window.usable}
    refused = {one.trajectory_id: one.reason for one in window.rejected}
    assert refused == {"none": "no_pnl", "pending": "unfinished", "in-both": "evaluation"}
    assert usable.keys() == {"good", "one", "label", "untold"} and surveyed["off-hour"].reason == "off_hour_window"
    assert usable["one"].window_pnl == 0.0 and usable["label"].misnamed
    told = {name: one.not_trainable for name, one in usable.items() if one.not_trainable}
    assert all({reason} <= cautions[name] for name, reason in {**told, "off-hour": "off_hour_window"}.items())
    assert all(reason in cautions[name] for name, reason in refused.items() if name in lines)
