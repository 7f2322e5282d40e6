import sys, time, threading
from tests.integration.conftest import *
from tests.integration.test_blocks_api import *
import pytest
@pytest.mark.parametrize("mode", ["idle", "stream", "stream_read"])
def test_x(make_service, mode):
    service = make_service(SHUTDOWN_TIMEOUT_S=10).start()
    with service.client(http2=True) as reader, service.client() as c:
        accepted(post(c, tick()))
        if mode == "idle":
            assert reader.get("/blocks/latest").status_code == 200
            t = monotonic(); service.terminate(); print(mode, monotonic()-t)
        else:
            with streamed(reader) as heights:
                assert next(heights) == 0
                if mode == "stream_read":
                    out = []
                    th = threading.Thread(target=lambda: (out.append(list(heights)), out.append(monotonic())))
                    th.start()
                t = monotonic(); service.terminate(); print(mode, monotonic()-t)
                if mode == "stream_read":
                    th.join(); print("ended after", out[1]-t, out)
    print(service.log[-1500:])
