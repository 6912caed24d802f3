"""The one idea: a stream is a log, and everybody who reads it is a cursor.

    stream         a log, its readers and its source      attendance   lost readers and the grace period
    source         who feeds a stream: the interface      follower     feeds one that another process owns
    directory      all streams: by id, by request id      retention    how long ended streams are kept
    store          where logs live: the interface         memory_store  the store of one process
    stored         a stream in a shared store             writer       takes its entries there

Everything is a plain call in the loop's thread: no task, queue or `await` per token. Who may read is asked of an
`Owner`; what the entries mean is left to `holdfast.dialects`, and who generates them to `holdfast.generation`.
"""
