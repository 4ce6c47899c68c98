"""Each test process, and each kernel it starts, has an empty store: the learner's own is never touched."""

import os
import tempfile

_home = tempfile.TemporaryDirectory(prefix="stabviz-")
os.environ["STABVIZ_HOME"] = _home.name
