"""What another process does in test_temporary.py: `deleting.py FOLDER` deletes that, again and again."""

import sys

from cmapkd_core import storage

PACE = 3  # writes between two deletions, so that the other one finds its moment on a slow disk as well

if __name__ == "__main__":
    storage.write_bytes(f"{sys.argv[1]}/go", b"")
    while storage.exists(f"{sys.argv[1]}/go"):  # the other one deletes it when it has begun
        pass
    while True:
        storage.delete_tree(sys.argv[1])
        for _ in range(PACE):
            storage.write_bytes(f"{sys.argv[1]}-beside/pace", b"data")
