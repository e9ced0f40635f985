"""What measures, each a command line."""

from adapterkit.system.ending import end_imports_when_interrupted

end_imports_when_interrupted()
