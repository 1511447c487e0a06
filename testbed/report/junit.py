"""JUnit XML of a run, so that any CI shows each promise and each gate as a test case of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from testbed.report.record import RunRecord
    from testbed.report.tenant_record import TenantRecord

JUNIT_NAME = "junit.xml"


def junit_xml(record: RunRecord) -> str:
    """Suites `promises` (a case per tenant, and one per bound against measurement), `fidelity`, `faults` if any."""
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
    suites = [promises, _fidelity(root, record), *([_faults(root, record)] if record.faults else [])]
    for suite in suites:
        suite.set("tests", str(len(suite)))
        suite.set("failures", str(sum(case.find("failure") is not None for case in suite)))
        suite.set("skipped", str(sum(case.find("skipped") is not None for case in suite)))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _fidelity(root: ET.Element, record: RunRecord) -> ET.Element:
    fidelity = ET.SubElement(root, "testsuite", name="fidelity")
    for gate in record.gates:
        case = _case(fidelity, f"{gate.name} (window {gate.window})", "gate")
        if gate.excused_by:
            ET.SubElement(case, "skipped", message=f"explained by the fault {gate.excused_by}")
        elif not gate.ok:
            value, limit = (f"{each:g} {gate.unit}".rstrip() for each in (gate.value, gate.limit))
            _failure(case, "INVALID", f"{value} against a limit of {limit}: {gate.detail}")
    return fidelity


def _faults(root: ET.Element, record: RunRecord) -> ET.Element:
    faults = ET.SubElement(root, "testsuite", name="faults")
    for fault in record.faults:
        for each in fault.expectations:
            case = _case(faults, f"{fault.name} (window {fault.window}): {each.tenant} {each.expected}", "fault")
            if not each.met:
                _failure(case, "FAIL", f"found {each.found}")
    return faults


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
        bound = f"bound {tenant.bound_s} s ({tenant.bound_method})"
        said = (
            f"{bound}: more than {tenant.allowed_later:g} were later or never arrived"
            if tenant.broken_at_s is None
            else f"{bound} lies below the lower confidence limit {tenant.broken_at_s} s of the measured percentile"
        )
        _failure(case, "BROKEN", said)
