"""doctor and progress: the set-up, and how far the course has been done."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Doctor:
    """Look at versions, device, threads, browser and write access, and say what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Show which lessons, predictions, exercises and quizzes were done."""


def doctor(options: Doctor) -> int:
    try:
        from stabviz.course.doctor import examine, report
    except ImportError as error:
        print(f"fail  packages  {error}\n{'':16}-> run: make setup, or: pip install -r requirements.txt -e .")
        return 1
    findings = examine()
    print(report(findings))
    return int(any(finding.level == "fail" for finding in findings))


def progress(options: Progress) -> int:
    from stabviz.course.progress import report

    print(report())
    return 0


COMMANDS = {Doctor: doctor, Progress: progress}
