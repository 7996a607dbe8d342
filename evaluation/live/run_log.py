"""All stages of a run that have left something to follow."""

from __future__ import annotations

from pathlib import Path

from evaluation.live.report_log import ReportLog
from evaluation.live.shard_log import ShardLog
from evaluation.live.stage_log import LOG, StageLog


class RunLog:
    """Shards, trainings and reports, each read as it grows."""

    def __init__(self, run: Path, totals: dict[str, int], report: Path | None = None) -> None:
        """totals: steps in all, by stage; report: a folder of one that is not in the run."""
        self.run, self.totals, self.report = run, totals, report
        self._stages: dict[str, StageLog] = {}

    def stages(self) -> dict[str, StageLog]:
        """The one written last first."""
        found = {log: log.parent for log in self.run.glob(f"*/{LOG}")}
        found |= {log: log.parent for log in self.run.glob(f"controller/*/{LOG}")}
        found |= {log: log.parent for log in self.run.glob(f"report/on-*/{LOG}")}
        if self.report is not None:
            found[self.report / LOG] = self.report
        shards = self.run / "shards"
        found[shards] = shards  # a folder is written to with each shard
        written: dict[str, float] = {}
        for file, folder in found.items():
            outside = folder == self.report and not folder.is_relative_to(self.run)
            name = "report" if outside else folder.relative_to(self.run).as_posix()
            try:
                written[name] = file.stat().st_mtime
            except OSError:
                continue
            if name not in self._stages or self._stages[name].folder != folder:
                self._stages[name] = self._open(name, folder)
        return {n: self._stages[n] for n in sorted(written, key=lambda n: -written[n])}

    def _open(self, name: str, folder: Path) -> StageLog:
        if name == "shards":
            return ShardLog(folder)
        if name.partition("/")[0] == "report":
            return ReportLog(folder)
        return StageLog(folder, self.totals.get(name, 0))
