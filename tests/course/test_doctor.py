import errno
import importlib.util
import shutil
import sys
import tempfile

import pytest
import torch

from stabviz.course import doctor
from stabviz.course.doctor import Finding, examine, report


def found(subject, requirements=("torch>=2.11",)):
    findings = [finding for finding in examine(list(requirements)) if finding.subject == subject]
    assert findings
    return findings


def test_examine_finds_nothing_to_mend_where_the_tests_run():
    assert [finding for finding in examine() if finding.level == "fail"] == []


def test_report_has_a_line_for_each_finding_and_advice_below_it():
    text = report(
        [
            Finding(level="ok", subject="device", text="cpu"),
            Finding(level="warn", subject="disk", text="0.1 GB", advice="make room"),
            Finding(level="fail", subject="packages", text="none", advice="install them"),
        ]
    )
    assert text.splitlines() == [
        "ok    device    cpu",
        "warn  disk      0.1 GB",
        "                -> make room",
        "fail  packages  none",
        "                -> install them",
        "1 to mend, 1 to know about",
    ]


def test_report_says_ready_where_all_is_well():
    assert report([Finding(level="ok", subject="device", text="cpu")]).splitlines()[-1] == "ready"


@pytest.mark.parametrize(
    ("requirement", "level", "text"),
    [
        ("numpy>=99", "fail", "wanted >=99"),
        ("no-such-package-here>=1", "fail", "is missing; wanted >=1"),
        ('jupyterlab>=99; extra == "course"', "fail", "wanted >=99"),
        ('pytest>=99; extra == "test"', "warn", "only the tests need it"),
    ],
)
def test_packages_out_of_range_are_named_with_what_to_do(requirement, level, text):
    first = found("packages", [requirement, "torch>=2.11"])[0]
    assert first.level == level
    assert text in first.text
    assert "make setup" in first.advice


def test_packages_of_other_platforms_and_local_builds_are_no_trouble():
    (only,) = found("packages", ["torch>=2.11,<99", 'no-such-package; python_version < "3"'])
    assert only.level == "ok"
    assert f"torch {torch.__version__}" in only.text


def test_stabviz_that_is_not_installed_is_said(monkeypatch):
    def missing(name):
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "requires", missing)
    (only,) = doctor._packages(None)
    assert only.level == "fail"
    assert "pip install -e ." in only.advice


def test_kernel_of_another_python_is_warned_of(monkeypatch):
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

    def other(self, name):
        return KernelSpec(argv=["/opt/elsewhere/bin/python"])

    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", other)
    (only,) = found("kernel")
    assert only.level == "warn"
    assert "/opt/elsewhere/bin/python" in only.text


def test_kernel_that_is_missing_fails(monkeypatch):
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    def none(self, name):
        raise NoSuchKernel(name)

    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", none)
    assert found("kernel")[0].level == "fail"


def test_gpu_that_torch_cannot_use_is_warned_of(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi" if name == "nvidia-smi" else None)
    assert found("device")[0].level == "warn"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert found("device")[0].level == "ok"


def test_more_threads_than_cores_are_warned_of(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_007)
    assert "OMP_NUM_THREADS" in found("threads")[0].advice


def test_python_stripped_of_the_text_fails(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name.startswith("pydoc_data") else find_spec(name)
    )
    assert found("text")[0].level == "fail"


def test_browser_missing_is_a_warning_and_playwrights_own_or_a_named_one_is_found(monkeypatch, tmp_path):
    monkeypatch.delenv("STABVIZ_CHROMIUM", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path))
    assert found("browser")[0].level == "warn"
    (tmp_path / "chromium-1187").mkdir()
    assert found("browser")[0].level == "ok"
    monkeypatch.setenv("STABVIZ_CHROMIUM", "/opt/my-own")
    assert found("browser")[0].text == "/opt/my-own"


def test_folder_that_cannot_be_written_fails_and_is_named(monkeypatch, tmp_path):
    def refuse(**arguments):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setenv("STABVIZ_HOME", str(tmp_path / "not" / "yet"))
    assert found("writing")[0].level == "ok"
    assert list(tmp_path.iterdir()) == []  # looking leaves nothing behind
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    (only,) = found("writing")
    assert only.level == "fail"
    assert str(tmp_path) in only.text


def test_full_disk_is_warned_of(monkeypatch):
    full = shutil.disk_usage(sys.prefix)._replace(free=101)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    assert found("disk")[0].level == "warn"
