"""What happens to requests and connections, told as it happens.

    audit         what the audit log says, and how: one line for each event
    events        frozen records of a request's and a connection's life, and the `Observer` that is told
    freshness     whether what was read from outside is still what is there
    request_log   the first observer: the lines of the log

Metrics, a ledger and traces are observers too. An observer is called in the turn of the event: it notes it and
returns; what it raises is logged and harms nobody.
"""
