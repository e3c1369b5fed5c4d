"""docs/benchmarks.md and the README's headline: what is committed is what the rows make, and nothing else."""

import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import benchmarks.report.__main__ as program
from benchmarks import ablations, attention, harness, roofline, scaling
from benchmarks.gpu.plan import Case, KernelCase, groups, kernel_cases
from benchmarks.gpu.records import KernelResult, Result, Times, beside_plain, row
from benchmarks.measure.messages import Subject, Taken
from benchmarks.measure.rounds import Load, Plan
from benchmarks.measure.run import run
from benchmarks.quartiles import Quartiles
from benchmarks.report import plots
from benchmarks.report.document import BEGIN, DOCUMENT, END, PLOTS, README, make_report
from benchmarks.report.sections import SECTIONS
from benchmarks.report.tables import digits, table
from benchmarks.rows import RESULTS, write_rows
from benchmarks.serving import batching, overhead, soak, stops
from benchmarks.serving.figures import Figures, Latency
from benchmarks.serving.noop import noop_bundle
from benchmarks.serving.ranking import FIRST
from benchmarks.serving.ranking import Case as Contest
from benchmarks.serving.ranking import Row as Standing
from lct_deploy.errors import LctDeployError
from lct_deploy.runtime.base import Stages

ROOT = Path(__file__).parent.parent
MACHINE = "intel-test"


def test_what_is_committed_is_what_the_rows_make() -> None:
    report = make_report(RESULTS, ROOT)
    assert {path.relative_to(ROOT) for path in (ROOT / PLOTS).iterdir()} == {
        path for path in report.files if path.suffix == ".svg"
    }, "run: make report"
    for path, text in report.files.items():
        assert (ROOT / path).read_text(encoding="utf-8") == text, f"{path}: run: make report"


def test_every_link_leads_to_a_heading_and_every_command_to_a_program() -> None:
    document = (ROOT / DOCUMENT).read_text(encoding="utf-8")
    titles = re.findall(r"^## (.*)", document, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    linked = set(re.findall(r"\]\(#([^)]+)\)", document))
    assert {section.anchor for section in SECTIONS} <= linked <= anchors
    headline = re.findall(rf"\]\({DOCUMENT}#([^)]+)\)", (ROOT / README).read_text(encoding="utf-8"))
    assert set(headline) <= anchors
    for section in SECTIONS:
        assert f"    {section.command}\n" in document
        for module in re.findall(r"python -m ([\w.]+)", section.command):
            assert find_spec(module) is not None


@pytest.fixture
def results(tmp_path: Path) -> Path:
    directory = tmp_path / "results"
    directory.mkdir()
    return directory


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / README).write_text(f"Before.\n{BEGIN}\nold\n{END}\nAfter.\n")
    return tmp_path


def write(results: Path, name: str, rows: Sequence[Any], also: dict[str, str] | None = None) -> None:
    """As the programs write them: dataclasses, or what makes columns of itself."""
    columns = [one.columns() if hasattr(one, "columns") else asdict(one) for one in rows]
    write_rows(results / f"{name}.csv", columns, also)


def document(results: Path, root: Path) -> str:
    return make_report(results, root).files[DOCUMENT]


def section_of(text: str, title: str) -> str:
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_nothing_measured_is_said_with_the_command(results: Path, root: Path) -> None:
    report = make_report(results, root)
    text = report.files[DOCUMENT]
    assert text.count("**Not measured yet.**") == len(SECTIONS)
    assert text.count("**any machine**") == len(SECTIONS)
    assert report.files[README].startswith(f"Before.\n{BEGIN}\n")
    assert report.files[README].endswith(f"{END}\nAfter.\n")
    assert report.files[README].count("not measured yet") == 2
    assert "old" not in report.files[README]


def pairs(model: str, form: str, ratios: Sequence[float], base: float | None = 10.0) -> list[attention.Pair]:
    return [
        attention.Pair(
            model=model,
            form=form,
            precision="fp32",
            batch=2,
            threads=2,
            round=number,
            milliseconds=ratio * (base or 1.0),
            base_milliseconds=base,
        )
        for number, ratio in enumerate(ratios)
    ]


def test_attention_over_the_plain_network_and_over_the_floor(results: Path, root: Path) -> None:
    rows = [
        *pairs("lct_resnet50", "stock", [1.1, 1.2, 1.3]),
        *pairs("lct_resnet50", "default", [2.0]),
        *pairs("floor", "slow", [11.0], None),
        *pairs("floor", "quick", [8.0], None),
    ]
    write(results, f"attention-{MACHINE}", rows)
    report = make_report(results, root)
    text = section_of(report.files[DOCUMENT], "What attention costs on the CPU")
    assert "| fp32, batch 2 | **1.200** [1.150, 1.250] | 1.50 | 6.00 | 5.00 | 4.00 | quick | – |" in text
    assert "| fp32, batch 2 | default | **2.000** (2.000 to 2.000) [2.000, 2.000] | 10.0 | – | – |" in text
    assert f"](benchmarks/attention-{MACHINE}.svg)" in text
    headline = report.files[README]
    assert f"| `{MACHINE}`, fp32, batch 2 | **1.200** [1.150, 1.250] | 1.50 | [not measured](" in headline


def test_lines_are_in_one_order_whatever_was_measured_first(results: Path, root: Path) -> None:
    measured = [("int8", 16), ("int8", 2), ("fp32", 16), ("fp32", 2)]
    one = pairs("lct_resnet50", "library", [1.1])
    rows = [replace(pair, precision=p, batch=b) for p, b in measured for pair in one]
    write(results, f"attention-{MACHINE}", rows)
    report = make_report(results, root)
    for text in (report.files[README], section_of(report.files[DOCUMENT], "What attention costs on the CPU")):
        found = [
            (p, int(b))
            for p, b in re.findall(r"^\| (?:`.*`, )?(\w+), batch (\d+) \| \*\*", text, re.MULTILINE)
        ]
        assert found == sorted(measured)


def test_attention_in_openvino(results: Path, root: Path) -> None:
    rows = [*pairs("lct_resnet50", "openvino", [1.1, 1.2, 1.3]), *pairs("lct_resnet50", "dynamic", [2.0])]
    write(results, f"openvino-{MACHINE}", rows)
    text = section_of(document(results, root), "What attention costs in OpenVINO")
    assert "| fp32, batch 2 | openvino | **1.200** (1.100 to 1.300) [1.150, 1.250] | 6.00 | 5.00 |" in text
    assert "| fp32, batch 2 | dynamic | **2.000** (2.000 to 2.000) [2.000, 2.000] | 10.0 | 5.00 |" in text


def test_where_the_time_in_openvino_goes(results: Path, root: Path) -> None:
    shared = {"precision": "int8", "batch": 1, "nodes": 3, "threads": 2}
    rows = [
        {"arch": "resnet50", "part": "layer1, 1x1", "milliseconds": 2.0, "operations": 10**9, **shared},
        {"arch": "lct_resnet50", "part": "layer1, 1x1", "milliseconds": 4.0, "operations": 10**9, **shared},
        {"arch": "lct_resnet50", "part": "MVN", "milliseconds": 1.0, "operations": 0, **shared},
    ]
    write_rows(results / f"openvino-layers-{MACHINE}.csv", rows)
    peak = roofline.Row(what="int8", detail="oneDNN 3x3", threads=1, rounds=1, best=1000.0, unit="Gop/s")
    memory = replace(peak, what="memory", detail="copy", best=20.0, unit="GB/s")
    write(results, f"roofline-{MACHINE}", [peak, memory])
    text = section_of(document(results, root), "Where the time in OpenVINO goes")
    assert "| layer1, 1x1 | 3 | 2.00 | 4.00 | 250 | 25% |" in text
    assert "| MVN | 3 | – | 1.00 | – | – |" in text
    assert "| **all** |  | 2.00 | 5.00 | 200 | 20% |" in text


@pytest.fixture
def peers(results: Path, tmp_path: Path) -> Path:
    """Real ones of a network that does nothing, under the name of one that is known; one is not installed."""
    bundle = noop_bundle(tmp_path / "noop").path
    ours = Subject(bundle=bundle, threads=1)
    others = [
        Subject(kind="onnxruntime", bundle=bundle, graph=bundle / "model.onnx", threads=1),
        Subject(kind="openvino", bundle=bundle, python=tmp_path / "python", threads=1, precision="fp32"),
    ]
    plan = Plan(loads=(Load(batch=2, concurrency=1),), seconds=0.01, most=2)
    found = run([ours, *others], plan, base=ours)
    write(
        results,
        f"peers-{MACHINE}",
        [replace(r, model="n-fp32", arch="lct_resnet50", precision="fp32") for r in found],
    )
    return results


def test_peers_beside_ours_and_what_is_not_installed(peers: Path, root: Path) -> None:
    report = make_report(peers, root)
    text = section_of(report.files[DOCUMENT], "Beside other ways to run the same network")
    (line,) = (line for line in text.splitlines() if line.startswith("| lct_resnet50 | fp32, batch 2 |"))
    beside, ours, plain, absent = line.split(" | ")[2:]
    best, other = (float(re.findall(r"\*\*([\d.]+)\*\*", cell)[0]) for cell in (beside, plain))
    assert beside.endswith("(lct-deploy onnxruntime / onnxruntime)")
    assert best == pytest.approx(1 / other, rel=0.01)
    assert ours.endswith("ms !")  # two rounds are too few to agree
    assert absent == "failed |"
    assert "Failed: openvino (lct_resnet50, fp32, batch 2): openvino is not installed" in text
    assert f"| `{MACHINE}`, fp32, batch 2 | [not measured](" in report.files[README]
    assert beside in report.files[README]


def test_peers_share_of_the_peak(peers: Path, root: Path) -> None:
    peaks = [("fp32", "oneDNN 3x3", 300.0, "Gop/s"), ("fp32", "onnxruntime 3x3", 200.0, "Gop/s")]
    rows = [
        roofline.Row(what=what, detail=detail, threads=1, rounds=1, best=best, unit=unit)
        for what, detail, best, unit in [*peaks, ("memory", "copy", 20.0, "GB/s")]
    ]
    write(peers, f"roofline-{MACHINE}", rows)
    write(peers, f"attention-{MACHINE}", pairs("lct_resnet50", "library", [1.1, 1.2, 1.3]))
    text = section_of(document(peers, root), "What the machine can do at most")
    assert "| fp32 | 300 Gop/s | 15.0 | oneDNN 3x3 |" in text
    assert "| 3x3 | 300 | 200 |" in text
    assert re.search(r"\| lct_resnet50, fp32, batch 2 \| \*\*\d+%\*\* \|", text)
    # 5.52 million elements of four bytes twice, at 20 GB/s; a pair of batches of two takes 2 ms more.
    assert "| fp32, batch 2 | 1.00 | 44.2 | 2.21 | **45%** |" in text


def test_scaling(results: Path, root: Path) -> None:
    rows = [
        scaling.Row(dimension="batch", work=n, milliseconds=3 * n**2, per_second=1 / n, stable=n < 4)
        for n in (1, 2, 4)
    ]
    write(results, f"scaling-{MACHINE}", [*rows, replace(rows[0], dimension="depth")])
    report = make_report(results, root)
    text = section_of(report.files[DOCUMENT], "How cost grows")
    assert "| batch | images at once | 1 | 4 | 16.00 | **2.00** | 2.00 |" in text
    assert "| batch | 4 | 48.0 ! | 0.250 |" in text
    assert "| depth | multiply-adds | 1 | 1 | 1.00 | – | – |" in text
    assert PLOTS / f"scaling-{MACHINE}.svg" in report.files


def test_ablations_beside_the_paper(results: Path, root: Path) -> None:
    rows = [
        ablations.Row(setting=name, table=table, seed=seed, epochs=3, top1=top1, loss=0.3, seconds=5)
        for name, table, seeds in (
            ("LCT", "1-5", (90.0, 91.0)),
            ("none", "1", (91.5, 92.5)),
            ("SE", "1, 4", (89.0, 89.5)),
            ("SE+", "4", (90.5, 91.5)),
            ("G 1", "2", (89.0,)),
            ("G 8", "2", (89.0, 89.5)),
        )
        for seed, top1 in enumerate(seeds)
    ]
    rows.append(
        ablations.Row(setting="G 16", table="2", seed=0, epochs=3, error="error: one channel a group")
    )
    write(results, "ablations", rows)
    text = section_of(document(results, root), "Ablations of the paper")
    assert "3 epochs a run." in text
    first, second, fourth = (text.split(f"Table {number}, ")[1].split("Table ")[0] for number in (1, 2, 4))
    for part in (first, second, fourth):
        assert "| LCT | **90.50** [90.00, 91.00] | 2 | – | 77.45 | – | – |" in part
    assert "| none | **92.00** [91.50, 92.50] | 2 | +1.50 | 76.15 | -1.30 | **disagrees** |" in first
    for part in (first, fourth):
        assert "| SE | **89.25** [89.00, 89.50] | 2 | -1.25 | 77.31 | -0.14 | agrees |" in part
    assert "SE+" not in first
    assert "| SE+ | **91.00** [90.50, 91.50] | 2 | +0.50 | 77.37 | -0.08 | not told apart |" in fourth
    assert "| 1 | -1.50 | 77.37 (G 1) | -0.08 | too few seeds |" in second
    assert "| G 128: does not converge | – | **disagrees**: it converges, and is worse |" in second
    assert "| G 16 | **failed**: error: one channel a group | 1 | – | one channel a group | – | – |" in second
    assert "Table 3" not in text


def contest(server: str, number: int, rate: float, status: str = "ok") -> Standing:
    latency = Latency(min=1, mean=2, p50=2, p90=3, p95=3, p99=4, max=5)
    figures = Figures(
        requests=9, ok=9, errors={"500": 1}, seconds=1, throughput=rate, latency=latency, late_ms=0
    )
    case = Contest(
        server=server, version=f"{server} 1", shape="1x2", round=number, loop="closed", connections=8
    )
    return Standing(
        case=case, status=status, figures=figures if status == "ok" else replace(figures, throughput=0)
    )


def test_the_server_beside_others_with_those_that_failed(results: Path, root: Path) -> None:
    rows = [
        contest(server, number, rate)
        for number in (FIRST, 1, 2)
        for server, rate in (("lct-deploy", 200.0 + 40 * number), ("fastapi", 100.0), ("ray", 50.0))
    ]
    rows.append(contest("bentoml", FIRST, 0, "ended before it answered (exit code 1)"))
    write(results, f"serving-compare-{MACHINE}", rows, {"bundle": "lct_resnet20", "wrk": "4.2"})
    report = make_report(results, root)
    text = section_of(report.files[DOCUMENT], "The server beside others")
    assert "| fastapi | **2.600** [2.500, 2.700] | 100 | – | – |" in text
    assert "- bentoml 1x2: ended before it answered (exit code 1)" in text
    assert PLOTS / f"serving-compare-{MACHINE}.svg" in report.files
    assert "**2.600** [2.500, 2.700] times the answers a second of fastapi" in report.files[README]


def test_what_the_server_adds_by_the_options_in_the_files_name(results: Path, root: Path) -> None:
    rows = [
        overhead.Row(bundle="demo", what="throughput", round=n, value=80, beside=100, unit="images/s")
        for n in (0, 1)
    ]
    noop = overhead.Row(bundle="noop", what="noop", round=0, value=5000, beside=None, unit="requests/s")
    write(results, f"serving-overhead-workers2-{MACHINE}", [*rows, noop], {"serve": "--workers 2"})
    report = make_report(results, root)
    text = section_of(report.files[DOCUMENT], "What the server adds")
    assert f"### `{MACHINE}`, workers2" in text
    assert "Options of the server: `--workers 2`." in text
    assert "| demo | throughput | **0.800** [0.800, 0.800] | 80.0 [80.0, 80.0] | 100 [100, 100] |" in text
    assert "| noop | noop | – | 5,000 [5,000, 5,000] | – |" in text
    assert "over HTTP **0.800** [0.800, 0.800] of the images a second" in report.files[DOCUMENT]


def test_how_the_server_lives_and_stops(results: Path, root: Path) -> None:
    samples = [
        soak.Sample(seconds=60.0 * n, processes=2, rss_mib=100 + n, files=20, connections=3) for n in range(9)
    ]
    write(
        results,
        f"serving-soak-{MACHINE}",
        samples,
        {"rate": "90", "bundle": "demo", "verdict": "memory grew"},
    )
    stop = stops.Row(
        what="SIGTERM", number=0, code=0, seconds=0.5, requests=90, ok=88, lost=2, lost_idle=1, refused=3,
        unanswered=0, other="503: 1",
    )  # fmt: skip
    write(results, f"serving-stops-{MACHINE}", [stop, replace(stop, number=1, lost=0, other="")])
    report = make_report(results, root)
    text = report.files[DOCUMENT]
    soaked = section_of(text, "Whether the server stays as it is")
    assert "**Failed**: memory grew. Bundle: demo." in soaked
    assert "| memory, last third over first | +5.94% |" in soaked
    assert PLOTS / f"serving-soak-{MACHINE}.svg" in report.files
    stopped = section_of(text, "What stopping and reloading lose")
    assert "**Failed**: 2 requests were lost; answers with 503: 1." in stopped
    assert "| SIGTERM | 2 | **2** | 0 | 180 | 0.500 | 0.500 | 0: 2 | 503: 1 |" in stopped


def test_small_tables(results: Path, root: Path) -> None:
    one = batching.Row(
        model="demo", arch="lct_resnet20", precision="fp32", graph="bundled", pixels=28, batch=2, round=0,
        images_per_second=150.0, times_one=1.5,
    )  # fmt: skip
    write(results, f"serving-batching-{MACHINE}", [one])
    write_rows(
        results / f"serving-observing-{MACHINE}.csv", [{"figure": "line", "round": 0, "microseconds": 5.5}]
    )
    write_rows(results / "serving-clients.csv", [{"client": "ours", "round": 0, "cpu_microseconds": 70.0}])
    taken = Taken(milliseconds=(0.501, 0.501), seconds=0.00100201, rss_mib=1)
    write(results, f"harness-{MACHINE}", [harness.row_of(0.5, 0, taken)])
    text = document(results, root)
    assert "| demo (lct_resnet20) | fp32 | 2 | **1.500** [1.500, 1.500] | 150 [150, 150] | 1 |" in text
    assert "| line | 5.50 [5.50, 5.50] | 1 |" in text
    assert "| ours | 70.0 [70.0, 70.0] | 1 |" in text
    assert "| 0.5 ms | **0.20%** [0.20%, 0.20%] | 1.00 [1.00, 1.00] | 2 |" in text


def timed(case: Case, milliseconds: float, status: str = "ok") -> dict[str, Any]:
    stages = Stages(host_to_device=0.1, enqueue=0.2, compute=0.3)
    times = Times.of([milliseconds] * 3)
    return row(case, Result(status=status, max_rel_error=1e-6, host=times, stages=stages, gpu_mib=512.0))


def test_a_gpus_networks_and_kernel(results: Path, root: Path) -> None:
    plain, native, plugin = groups("tensorrt")[0].cases
    rows = beside_plain([timed(plain, 4.0), timed(native, 5.0), timed(plugin, 4.0, "failed: no such tactic")])
    write_rows(results / "gpu_networks.csv", rows, {"gpu": "NVIDIA Test"})
    fused, eager = kernel_cases()[:2]
    launches = [kernel_row(fused, 1.0, 900.0), kernel_row(eager, 4.0, 225.0)]
    write_rows(results / "gpu_kernel.csv", launches, {"gpu": "NVIDIA Test"})
    text = document(results, root)
    networks = section_of(text, "Networks on a GPU")
    assert (
        "| tensorrt | fp16 | 32 | native | **1.250** | 6,400 | 5.00 (5.00, 5.00) | 0.100 / 0.200 / 0.300 / – "
        "| 512 | 1.0e-06 |"
    ) in networks
    assert "1 of 3 cases: failed: no such tactic" in networks
    assert "gpu NVIDIA Test" in networks
    assert "| stage 1 | fp16 | nhwc | 32 | **90%** | 900 | 22% | 0.250 |" in text


def kernel_row(case: KernelCase, milliseconds: float, rate: float) -> dict[str, Any]:
    times = Times.of([milliseconds])
    return row(
        case,
        KernelResult(status="ok", times=times, gigabytes_per_second=rate, copy_gigabytes_per_second=1000.0),
    )


def test_rows_that_no_section_shows_are_an_error(results: Path, root: Path) -> None:
    write_rows(results / "surprise.csv", [{"a": 1}])
    with pytest.raises(LctDeployError, match=r"surprise\.csv: no section of the report is made from it"):
        make_report(results, root)


def test_a_file_without_rows_is_an_error(results: Path, root: Path) -> None:
    (results / "spine.csv").write_text("what,run,seconds,peak_mib\n")
    with pytest.raises(LctDeployError, match="it has no rows"):
        make_report(results, root)


@pytest.mark.parametrize("text", [f"{BEGIN}\n", f"{END}\n", ""])
def test_a_readme_without_the_markers_is_left_alone(results: Path, root: Path, text: str) -> None:
    (root / README).write_text(text)
    with pytest.raises(LctDeployError, match=r"README\.md lacks"):
        make_report(results, root)


def test_the_program_writes_and_removes_what_is_of_no_rows(
    results: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "ROOT", root)
    monkeypatch.setattr(program, "RESULTS", results)
    write(results, f"attention-{MACHINE}", pairs("lct_resnet50", "library", [1.0, 1.1]))
    (root / PLOTS).mkdir()
    (root / PLOTS / "gone.svg").write_text("<svg/>")
    program.main()
    assert [path.name for path in (root / PLOTS).iterdir()] == [f"attention-{MACHINE}.svg"]
    assert "gone.svg: removed" in capsys.readouterr().out
    assert (root / DOCUMENT).read_text() == make_report(results, root).files[DOCUMENT]


def luminance(colour: str) -> float:
    """Relative, of WCAG 2."""
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("ground", ["#ffffff", "#0d1117"])
def test_plots_read_on_both_grounds(ground: str) -> None:
    for colour, least in [(plots.INK, 4.2), *((colour, 3.5) for colour in plots.COLOURS)]:
        light, dark = sorted((luminance(colour), luminance(ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= least, colour


def test_plots_are_drawn_alike_and_without_a_date_or_a_font() -> None:
    dots = plots.Dots(label="series", values=[Quartiles(first=0.9, median=1, third=1.2), None])
    first, second = (plots.ratio_plot({"panel": (["a", "b"], [dots])}, "ratio") for _ in range(2))
    assert first == second
    assert "<dc:date>" not in first
    assert "<text" not in first
    assert "background" not in first


def test_numbers_and_columns() -> None:
    assert [digits(x) for x in (0.01234, 1.0, 59.96, 99.96, 1234.5, None)] == [
        "0.0123", "1.00", "60.0", "100", "1,234", "–",
    ]  # fmt: skip
    assert table(["a", "b", "c"], [["1", "**1.0** [0.9, 1.1]", "two"]]).splitlines()[1] == "|---|---:|---|"
