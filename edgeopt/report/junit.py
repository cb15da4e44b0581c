"""JUnit XML, as Jenkins, GitLab and GitHub's test reporters read it: one test case per check and target."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from edgeopt.pipeline.verdict import CheckResult, GateResult

NOT_XML = re.compile("[^\\x09\\x0a\\x0d\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")
"""Characters that XML 1.0 cannot hold; file names and error messages may."""


def as_junit(result: GateResult) -> str:
    """The text of the file. Inconclusive checks are ``skipped``, or failures where the policy says so."""
    strict = result.policy.get("inconclusive") == "fail"
    suite = ElementTree.Element("testsuite", name="edgeopt gate", time=f"{result.seconds:.2f}")
    failures = skipped = 0
    for check in result.checks:
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"edgeopt.{check.target or 'run'}", name=check.id, time="0"
        )
        if check.verdict == "fail" or (check.verdict == "inconclusive" and strict):
            failures += 1
            found = ElementTree.SubElement(case, "failure", message=_clean(check.summary), type=check.verdict)
            found.text = _clean(_text(check))
        elif check.verdict == "inconclusive":
            skipped += 1
            ElementTree.SubElement(case, "skipped", message=_clean(f"inconclusive: {check.summary}"))
        else:
            ElementTree.SubElement(case, "system-out").text = _clean(_text(check))
    suite.set("tests", str(len(result.checks)))
    suite.set("failures", str(failures))
    suite.set("errors", "0")
    suite.set("skipped", str(skipped))
    root = ElementTree.Element("testsuites", name="edgeopt", tests=suite.get("tests", ""), failures=str(failures))
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _text(check: CheckResult) -> str:
    lines = [check.summary, f"Why: {check.reason}.", *([f"What to do: {check.remedy}"] if check.remedy else [])]
    return "\n".join([*lines, *check.details])


def _clean(text: str) -> str:
    return NOT_XML.sub("�", text)
