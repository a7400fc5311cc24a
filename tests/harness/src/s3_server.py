"""An S3 server for tests: moto, one request at a time, so that its conditional creates are atomic.

    python s3_server.py PORT PORT_FILE      (port 0: any free one; the port goes to PORT_FILE once it listens)
"""

import os
import sys

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

port, port_file = int(sys.argv[1]), sys.argv[2]
# With threads, two of sixteen creates of one key at the same time may win.
server = make_server("127.0.0.1", port, DomainDispatcherApplication(create_backend_app), threaded=False)
with open(port_file + ".new", "w") as file:
    file.write(str(server.port))
os.rename(port_file + ".new", port_file)
server.serve_forever()
