"""Reads a job's log with the published `sagemaker-train`, independent of Heldout.

    python sdk_logs.py SETTINGS

SETTINGS is JSON: `job`, the job's name. The last line of its output is the lines it read, as JSON.
"""

import contextlib
import io
import json
import sys

from sagemaker.train.common_utils.log_streamer import AGENT_RFT_EVAL_LOG_GROUP, LogStreamer, stream_log_loop


def main() -> None:
    job = json.loads(sys.argv[1])["job"]
    streamer = LogStreamer(AGENT_RFT_EVAL_LOG_GROUP, job)
    looks = [streamer.poll_once(), streamer.poll_once()]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        stream_log_loop(LogStreamer(AGENT_RFT_EVAL_LOG_GROUP, job), 1, lambda: "Succeeded")
    tail = LogStreamer(AGENT_RFT_EVAL_LOG_GROUP, job).poll_tail(2)
    print(json.dumps({"looks": looks, "printed": printed.getvalue().splitlines(), "tail": tail}))


if __name__ == "__main__":
    main()
