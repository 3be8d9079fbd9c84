"""What another process does in test_temporary.py: `deleting.py FOLDER` deletes that, again and again."""

import sys
import time

from cmapkd_core import storage

if __name__ == "__main__":
    storage.write_bytes(f"{sys.argv[1]}/go", b"")
    while storage.exists(f"{sys.argv[1]}/go"):  # the other one deletes it when it has begun
        pass
    while True:
        storage.delete_tree(sys.argv[1])
        time.sleep(0.001)  # without a pause nobody else would find a moment in which the folder is there
