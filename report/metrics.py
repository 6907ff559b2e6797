"""What a reader must know of each metric, which its runs declare in their config.json: which values
are better, the unit of a gain, its trap."""

from runs.measures import OF_VIDEOS

ZERO = 1e-12  # of what a change in per cent is none


class Metric(str):
    """A metric's name, with what runs/measures.py says there is to be said of it."""

    def __new__(cls, name, said):
        self = super().__new__(cls, name)
        self.better, self.relative = said["better"], said.get("relative", False)
        self.leads, self.called = said.get("leads", False), said.get("called", name)
        self.about, self.unit = said.get("about", ""), said.get("unit", "")
        self.learned = said.get("learned", False)
        return self


def declared(said):
    """{name: Metric} of a table as in config.json; of a run that has none those of videos."""
    return {name: Metric(name, words) for name, words in (said or OF_VIDEOS).items()}


def shared(runs):
    """The metrics of adapted runs, or of a baseline alone. May some decide (`leads`) in all of the
    runs, no other does."""
    tables = [declared(run.config.get("metrics")) for run in runs]
    found = {name: metric for table in reversed(tables) for name, metric in table.items()}
    ordered = {name: found[name] for table in tables for name in table}
    leads = set.intersection(*({n for n, m in table.items() if m.leads} for table in tables))
    for name, metric in ordered.items() if leads else ():
        metric.leads = name in leads
    return ordered


def are_declared(said):
    """Whether what was read from a config.json is what a run declares."""
    if said is None:
        return True
    return isinstance(said, dict) and all(map(is_declaration, said.values())) and said != {}


def is_declaration(said):
    if not isinstance(said, dict) or said.get("better") not in ("higher", "lower"):
        return False
    texts = [said.get(key, "") for key in ("called", "about", "unit")]
    switches = [said.get(key, False) for key in ("relative", "leads", "learned")]
    return all(isinstance(x, str) for x in texts) and all(isinstance(x, bool) for x in switches)


COMPARED = list(declared(OF_VIDEOS).values())


def title(metric):
    unit = ", gains in %" if metric.relative else ""
    return f"{metric} ({metric.better} is better{unit})"


def unit(metric):
    """Of a gain, for behind the number; "" where the metric's name has it."""
    return " %" if metric.relative else ""


def gain_label(metric):
    return f"gain, {metric}{',' if unit(metric) else ''}{unit(metric)}"


def main_metric(*comparisons):
    """What figures, players and the terminal show: of those that may decide the first that all of
    the compared runs have, else the last."""
    leads = [metric for metric in comparisons[0].metrics.values() if metric.leads]
    measured = (m for m in leads if all(c.scored(m) for c in comparisons))
    return next(measured, (leads or list(comparisons[0].metrics.values()))[-1])
