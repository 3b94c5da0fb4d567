"""Default paths lie in the folder where a test runs, also in the processes that the test starts."""
import os

os.environ["BI3DQRNN_HOME"] = "."
