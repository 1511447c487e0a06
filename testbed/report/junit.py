"""JUnit XML of a run, so that any CI shows each promise and each gate as a test case of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from testbed.report.record import RunRecord, TenantRecord


def junit_xml(record: RunRecord) -> str:
    """One suite `promises` (a case per tenant, and one per bound against measurement) and one suite `fidelity`."""
    root = ET.Element("testsuites", name=record.name)
    promises = ET.SubElement(root, "testsuite", name="promises")
    for tenant in record.tenants:
        case = _case(promises, tenant.name, "promise")
        if tenant.verdict in {"FAIL", "INVALID"}:
            _failure(case, tenant.verdict, tenant.reason)
        elif tenant.verdict in {"UNDETERMINED", "EXCUSED", "NONE"}:
            ET.SubElement(case, "skipped", message=f"{tenant.verdict}: {tenant.reason}")
        if tenant.bound_s is not None:
            _bound_case(promises, tenant)
    fidelity = ET.SubElement(root, "testsuite", name="fidelity")
    for gate in record.gates:
        case = _case(fidelity, f"{gate.name} (window {gate.window})", "gate")
        if not gate.ok:
            _failure(case, "INVALID", f"{gate.value:g} {gate.unit} against a limit of {gate.limit:g}: {gate.detail}")
    for suite in (promises, fidelity):
        suite.set("tests", str(len(suite)))
        suite.set("failures", str(sum(case.find("failure") is not None for case in suite)))
        suite.set("skipped", str(sum(case.find("skipped") is not None for case in suite)))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def write_junit(record: RunRecord, path: Path) -> None:
    """Write `junit_xml(record)` to `path`."""
    path.write_text(junit_xml(record), encoding="utf-8")


def _case(suite: ET.Element, name: str, kind: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", name=name, classname=f"testbed.{kind}")


def _failure(case: ET.Element, kind: str, text: str) -> None:
    ET.SubElement(case, "failure", type=kind, message=text)


def _bound_case(suite: ET.Element, tenant: TenantRecord) -> None:
    case = _case(suite, f"{tenant.name}: bound against measurement", "bound")
    if tenant.bound_broken:
        _failure(
            case,
            "BROKEN",
            f"bound {tenant.bound_s} s ({tenant.bound_method}) lies below the lower confidence limit "
            f"{tenant.promised_lower_s} s of the measured percentile",
        )
