"""An S3 server for tests: moto, one request at a time, so that its conditional creates are atomic.

    python s3_server.py PORT PORT_FILE FLAW

PORT 0 means any free port; the port is written to PORT_FILE once the server listens. FLAW is a defect of real servers:
`none`; `ignores-conditions`: a conditional create overwrites; `checks-then-writes`: it checks and writes in two steps.
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


def checks_then_writes(inner):
    """Waits a moment between a check and its write, so that other requests check too."""
    one_at_a_time = threading.Lock()
    check_done = threading.Condition()
    checks = {}

    def exists(environ):
        check = dict(environ, REQUEST_METHOD="HEAD", CONTENT_LENGTH="0")
        check["wsgi.input"] = io.BytesIO()
        with one_at_a_time:
            _, status, _ = run_wsgi_app(inner, check, buffered=True)
        return status.startswith("200")

    def serve(environ, start_response):
        if environ.pop(CONDITION, None):
            if exists(environ):
                start_response("412 Precondition Failed", [("Content-Length", "0")])
                return [b""]
            path = environ["PATH_INFO"]
            with check_done:
                checks[path] = checks.get(path, 0) + 1
                check_done.notify_all()
                check_done.wait_for(lambda: checks[path] > 1, timeout=0.5)
        with one_at_a_time:
            return inner(environ, start_response)

    return serve


FLAWS = {"none": None, "ignores-conditions": ignores_conditions, "checks-then-writes": checks_then_writes}


def main(port, port_file, flaw):
    application = DomainDispatcherApplication(create_backend_app)
    if FLAWS[flaw]:
        application = FLAWS[flaw](application)
    # With threads, two of sixteen concurrent creates of one key may succeed.
    server = make_server("127.0.0.1", int(port), application, threaded=flaw == "checks-then-writes")
    with open(port_file + ".new", "w") as file:
        file.write(str(server.port))
    os.rename(port_file + ".new", port_file)
    server.serve_forever()


main(*sys.argv[1:])
