"""What multiprocessing's fork server imports before it forks: it, and what it has forked, end with its parent."""

from .orphans import end_server

end_server()
