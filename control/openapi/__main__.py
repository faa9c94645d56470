"""`python -m control.openapi DESCRIPTOR_SET`: writes the document to stdout. `make proto` calls it."""

import json
import sys
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from control.openapi.comments import comments
from control.openapi.document import document

if __name__ == "__main__":
    files = FileDescriptorSet.FromString(Path(sys.argv[1]).read_bytes())
    json.dump(document(comments(files)), sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")
