"""The studies by name: each is one table or figure of a report, or a comparison that goes on from one."""

from tljax.study import few_labels, seed000, seed001, seed002, seed003, seed004
from tljax.study.study import Look, Study

LOOKS: dict[str, Look] = {seed002.SAMOYED.name: seed002.SAMOYED}
STUDIES: dict[str, Study] = {
    study.name: study for seed in (seed000, seed001, few_labels, seed002, seed003, seed004) for study in seed.STUDIES
}
