"""`archc bench --gpu`: operations, a layer and a whole model on a GPU, beside peers, in one run.

| file | tells |
|---|---|
| `cases.py` | which cases there are, how large and in which order |
| `operations.py`, `models.py` | what is compared: ours and the peers', made to do the same work |
| `operation_runs.py`, `model_runs.py` | how a case of those is timed |
| `session.py` | what the cases of one run share: device, packages that passed their self-test, time left |
| `timing.py` | how figures come about that can be believed |
| `record.py` | what was found, as JSON and as lines |
| `run.py` | the run |
"""
