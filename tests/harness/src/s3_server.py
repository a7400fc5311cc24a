"""An S3 server for tests: moto, one request at a time, so that its conditional creates are atomic.

    python s3_server.py PORT PORT_FILE FLAW

PORT 0 is any free one; the port goes to PORT_FILE once it listens. FLAW is what servers in the wild get wrong:
`none`; `ignores-conditions`: a conditional create overwrites; `looks-then-writes`: it looks and writes in two steps.
"""

import io
import os
import sys
import threading

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
from werkzeug.test import run_wsgi_app

CONDITION = "HTTP_IF_NONE_MATCH"


def ignores_conditions(inner):
    def serve(environ, start_response):
        environ.pop(CONDITION, None)
        return inner(environ, start_response)

    return serve


def looks_then_writes(inner):
    """Between a look and its write it gives others a moment to look too."""
    one_at_a_time = threading.Lock()
    somebody_looked = threading.Condition()
    looks = {}

    def exists(environ):
        look = dict(environ, REQUEST_METHOD="HEAD", CONTENT_LENGTH="0")
        look["wsgi.input"] = io.BytesIO()
        with one_at_a_time:
            _, status, _ = run_wsgi_app(inner, look, buffered=True)
        return status.startswith("200")

    def serve(environ, start_response):
        if environ.pop(CONDITION, None):
            if exists(environ):
                start_response("412 Precondition Failed", [("Content-Length", "0")])
                return [b""]
            path = environ["PATH_INFO"]
            with somebody_looked:
                looks[path] = looks.get(path, 0) + 1
                somebody_looked.notify_all()
                somebody_looked.wait_for(lambda: looks[path] > 1, timeout=0.5)
        with one_at_a_time:
            return inner(environ, start_response)

    return serve


FLAWS = {"none": None, "ignores-conditions": ignores_conditions, "looks-then-writes": looks_then_writes}


def main(port, port_file, flaw):
    application = DomainDispatcherApplication(create_backend_app)
    if FLAWS[flaw]:
        application = FLAWS[flaw](application)
    # With threads, two of sixteen creates of one key at the same time may win.
    server = make_server("127.0.0.1", int(port), application, threaded=flaw == "looks-then-writes")
    with open(port_file + ".new", "w") as file:
        file.write(str(server.port))
    os.rename(port_file + ".new", port_file)
    server.serve_forever()


main(*sys.argv[1:])
