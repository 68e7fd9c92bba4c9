"""The table of settings: for each its default, its flag, and what it does.

The schema takes defaults and descriptions from here; the help of the flags, configs/worker.toml and
docs/configuration.md are made from it. It imports nothing, because help must not wait for pydantic.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from worker import defaults


class Setting(NamedTuple):
    """A setting's default (None: not set), what it does, its flag, and an example value.

    The flag of a switch takes no value and sets the opposite of the default. The example is shown,
    commented out, in configs/worker.toml where there is no default to show.
    """

    default: Any
    description: str
    flag: str | None = None
    example: Any = None


GROUPS: Final = {
    "input": "How messages are read. Fields are those of JSON objects, and of CSV and TSV headers.",
    "cache": "What is remembered of texts that were seen before, and where.",
    "engine": "What scores texts, and how they are put into batches.",
    "kafka": "Where events come from and labels go to, and with what guarantee.",
    "kafka.tls": "How connections to the brokers are encrypted.",
    "kafka.sasl": "How the worker logs in at the brokers.",
    "run": "How `worker run` starts, reports on itself and stops.",
    "log": "What the worker writes to standard error about its own work.",
}

SETTINGS: Final = {
    "model": Setting(
        None,
        "The model folder to label with, such as `worker prepare` writes. By default it is the "
        "built-in emotion model.",
        flag="--model",
        example="models/mine",
    ),
    "model_digest": Setting(
        None,
        "The digest that the model must have, thresholds included, as labels and `worker check` show "
        "it. With another model no command that labels begins. By default any model will do.",
        example="c082742c43d45652",
    ),
    "include_text": Setting(
        default=False,
        description="With true, the text of each message is copied to its labels. Texts are "
        "private, so this is off unless you ask for it.",
        flag="--include-text",
    ),
    "thresholds": Setting(
        {},
        "Thresholds that replace those of the model, label by label. A label is given where its "
        "score, from 0 to 1, reaches its threshold. Thresholds are part of the digest in the "
        "output. By default those of the model hold.",
        flag="--threshold",
        example={"joy": 0.5},
    ),
    "input.text_field": Setting(
        "text", "The field of a message that holds its text.", flag="--text-field"
    ),
    "input.id_field": Setting("id", "The field of a message that holds its id.", flag="--id-field"),
    "input.keep": Setting(
        (),
        "The fields of a message that are copied to its labels as they are, separated by commas.",
        flag="--keep",
    ),
    "input.skip_field": Setting(
        None,
        "Events in which this field is true are not labelled, only counted. In JSON that is the value "
        "true, in CSV and TSV the word true. By default no event is skipped.",
        example="bot",
    ),
    "input.max_bytes": Setting(
        2**20,
        "The largest message in bytes. A longer one becomes a dead letter, so that memory stays "
        "bounded.",
        flag="--max-bytes",
    ),
    "input.max_id_length": Setting(
        defaults.MAX_ID_LENGTH,
        "The longest id of a message in characters. A message with a longer one becomes a dead letter.",
    ),
    "cache.enabled": Setting(
        default=True,
        description="With true, scores of texts are remembered, in memory and on disk, so that a "
        "text which comes again is not computed again. Labels are the same either way.",
        flag="--no-cache",
    ),
    "cache.directory": Setting(
        None,
        "The folder of the cache on disk, which the processes of a host share. Only its owner can "
        "read it. It holds digests and scores, and no texts. By default it is ~/.cache/worker.",
        flag="--cache-directory",
        example="/var/cache/worker",
    ),
    "cache.disk_bytes": Setting(
        defaults.DISK_BYTES, "The largest size of the folder on disk, in bytes."
    ),
    "cache.memory_entries": Setting(
        defaults.MEMORY_ENTRIES,
        "The largest number of texts that each process remembers in memory, at some 170 bytes "
        "each. With 0 only the folder on disk remembers.",
    ),
    "engine.kind": Setting(
        "auto",
        "What scores texts: `native`, our own engine, whose scores are the same on every CPU; "
        "`onnxruntime`; or `auto`, native where this machine can run it. Their scores differ a "
        "little, so they have different digests, and share no cache.",
    ),
    "engine.backend": Setting(
        None,
        "The instructions that the native engine uses, one of `amx`, `avx512vnni`, `avxvnni`, `avx2` "
        "and `neon`. Scores are the same with all. By default it is the fastest of this machine.",
        example="avx2",
    ),
    "engine.token_budget": Setting(
        defaults.TOKEN_BUDGET,
        "The largest number of tokens in a batch, which the engine computes at once. Speed is the "
        "same from about 200 to 512 tokens, and lower beyond.",
    ),
    "kafka.brokers": Setting(
        ("localhost:9092",),
        "Some brokers of the cluster, as host:port, separated by commas. The client learns of the "
        "other brokers from them.",
        flag="--brokers",
    ),
    "kafka.input_topics": Setting(
        ("chat",), "The topics that events are read from, separated by commas.", "--input-topics"
    ),
    "kafka.output_topic": Setting(
        "labels", "The topic that labels are written to.", flag="--output-topic"
    ),
    "kafka.dead_letter_topic": Setting(
        "dead-letters",
        "The topic that dead letters are written to: records that cannot be labelled, each with "
        "the reason.",
        flag="--dead-letter-topic",
    ),
    "kafka.format": Setting(
        "json",
        "What a record of the input topics holds. json: an object with the fields that the input "
        "settings name. text: the text alone, in UTF-8.",
    ),
    "kafka.group": Setting(
        "chat-label-worker",
        "The consumer group. Workers of one group share the partitions of the input topics out "
        "among them; each group reads all events.",
        flag="--group",
    ),
    "kafka.client_id": Setting(
        "worker", "The name of this client in the logs and quotas of the brokers."
    ),
    "kafka.guarantee": Setting(
        "at-least-once",
        "What a fault may cost. at-least-once: every event is labelled, and a fault may label a "
        "chunk twice. exactly-once: readers of committed records see each label once; labels come "
        "in transactions, which takes some 20 ms longer.",
        flag="--guarantee",
    ),
    "kafka.start": Setting(
        "earliest",
        "Where a new group begins in each partition: earliest, at the first record, or latest, "
        "behind the last one. It has no effect once the group has committed an offset.",
        flag="--start",
    ),
    "kafka.assignment": Setting(
        "cooperative",
        "How partitions are shared out among the workers of a group. cooperative moves few of them "
        "in a rebalance; range is what older groups use.",
    ),
    "kafka.transactional_id": Setting(
        None,
        "The id of this worker's transactions under exactly-once, which must differ between living "
        "workers. By default it is random and begins with the group's name.",
        example="worker-0",
    ),
    "kafka.pass_key": Setting(
        default=True,
        description="With true, labels get the key of their event, by which Kafka chooses their "
        "partition.",
    ),
    "kafka.pass_headers": Setting(
        default=True, description="With true, labels get the headers of their event."
    ),
    "kafka.compression": Setting(
        "none",
        "How the records that are sent are compressed: none, gzip, snappy, lz4 or zstd. All of "
        "them can be read, whatever is set here.",
    ),
    "kafka.max_message_bytes": Setting(
        2**21,
        "The largest message that is sent, in bytes. A dead letter is an event with headers of "
        "ours: where events may be as large as Kafka's default, max.message.bytes of the "
        "dead-letter topic must be larger than that default. One that is too large says where its "
        "event is, and does not carry it.",
    ),
    "kafka.max_batch_bytes": Setting(
        2**26,
        "How large a record batch may become when it is decompressed, in bytes. A larger one counts "
        "as one that cannot be decoded: whoever may write to a topic can make one of a few kilobytes "
        "that would take all memory.",
    ),
    "kafka.max_key_bytes": Setting(
        2**16, "The largest key of an event in bytes; one with a larger key becomes a dead letter."
    ),
    "kafka.max_header_bytes": Setting(
        2**16,
        "The largest size of all headers of an event in bytes; one with more becomes a dead letter.",
    ),
    "kafka.undecodable": Setting(
        "stop",
        "What to do at a record batch that cannot be decoded, once all before it is labelled: stop "
        "the worker, until a person has looked and has moved the group past it; or dead-letter, "
        "which leaves a dead letter with the bytes of the batch and goes on.",
    ),
    "kafka.max_unreadable": Setting(
        0.99,
        "The share of 1,000 records, from 0 to 1, that may be unreadable: not UTF-8, not JSON, without "
        "text, or with an id that is none. Beyond it the worker ends, since its settings do not seem "
        "to fit the topic. 1 lets it go on whatever comes.",
    ),
    "kafka.chunk_records": Setting(
        defaults.CHUNK_RECORDS,
        "The largest number of records in a chunk, which is labelled, published and committed as a "
        "whole.",
    ),
    "kafka.chunk_seconds": Setting(
        0.5,
        "The time in seconds that labelling a chunk may take. Where there is lag, chunks grow "
        "until they take so long.",
    ),
    "kafka.commit_interval_seconds": Setting(
        0.05, "The least time in seconds between two transactions, under exactly-once."
    ),
    "kafka.deadline_seconds": Setting(
        30.0,
        "The time in seconds in which a chunk must be labelled and published. One that takes "
        "longer is abandoned, and done again when the brokers are back.",
    ),
    "kafka.max_poll_interval_seconds": Setting(
        300.0,
        "A worker that stalls for longer than these seconds loses its partitions to the others of "
        "the group. It must be at least twice kafka.deadline_seconds.",
    ),
    "kafka.session_timeout_seconds": Setting(
        15.0,
        "A worker that the brokers have not heard of for these seconds loses its partitions. So "
        "long the partitions of a killed worker wait.",
    ),
    "kafka.transaction_timeout_seconds": Setting(
        15.0,
        "The time in seconds after which the brokers abort the open transaction of a killed "
        "worker. So long it holds back readers and the worker's successor.",
    ),
    "kafka.request_timeout_seconds": Setting(
        10.0, "A request that a broker has not answered after these seconds is repeated."
    ),
    "kafka.tls.enabled": Setting(
        default=False, description="With true, the connections to the brokers are encrypted."
    ),
    "kafka.tls.ca": Setting(
        None,
        "The PEM file with the certificates of the authorities that are trusted. By default those "
        "of the system are.",
        example="ca.pem",
    ),
    "kafka.tls.certificate": Setting(
        None,
        "The PEM file with this client's own certificate, for brokers that ask for one. It needs "
        "kafka.tls.key. By default there is none.",
        example="worker.pem",
    ),
    "kafka.tls.key": Setting(
        None,
        "The PEM file with the private key of kafka.tls.certificate. By default there is none.",
        example="worker.key",
    ),
    "kafka.tls.key_password": Setting(
        None,
        "The password of the private key. Give it by its environment variable, or by "
        "kafka.tls.key_password_file. By default there is none.",
        example="",
    ),
    "kafka.tls.key_password_file": Setting(
        None,
        "The file that holds the password of the private key. By default there is none.",
        example="/run/secrets/key-password",
    ),
    "kafka.tls.check_hostname": Setting(
        default=True,
        description="With true, a broker is refused whose certificate is not for the host name "
        "that kafka.brokers, or another broker, gives for it.",
    ),
    "kafka.sasl.mechanism": Setting(
        "none",
        "How the worker logs in: none, plain, scram-sha-256 or scram-sha-512. All but none need a "
        "user name and a password.",
    ),
    "kafka.sasl.username": Setting(
        None, "The user name to log in with. By default there is none.", example="worker"
    ),
    "kafka.sasl.password": Setting(
        None,
        "The password to log in with. Give it by its environment variable, or by "
        "kafka.sasl.password_file. By default there is none.",
        example="",
    ),
    "kafka.sasl.password_file": Setting(
        None,
        "The file that holds the password to log in with. By default there is none.",
        example="/run/secrets/kafka-password",
    ),
    "run.processes": Setting(
        1,
        "How many processes label, each with an engine of its own and one thread of compute. "
        "`worker replay` uses this setting, too.",
        flag="--processes",
    ),
    "run.listen": Setting(
        "127.0.0.1:9464",
        "Where metrics and health are served over HTTP: host:port, or off.",
        flag="--listen",
    ),
    "run.allowed_hosts": Setting(
        ("localhost",),
        "The names by which others may ask for metrics and health, separated by commas; * is any. "
        "Without this check, a page on the web could read them from the browser of someone who "
        "reaches the worker (DNS rebinding). Addresses of IP are always allowed.",
    ),
    "run.stop_seconds": Setting(
        6.0,
        "The time in seconds that a worker has to finish the chunk in hand when it is asked to "
        "stop. Closing takes two seconds more at most.",
    ),
    "run.stuck_seconds": Setting(
        300.0,
        "A process ends after these seconds without progress, where there is work and the brokers "
        "answer. It must be at least twice kafka.deadline_seconds.",
    ),
    "log.level": Setting(
        "info",
        "The least severe events that are logged: debug, info, warning or error.",
        "--log-level",
    ),
    "log.format": Setting(
        "auto",
        "How events are logged: console for people, json as JSON lines for machines, or auto, "
        "which is console on a terminal and json otherwise.",
        flag="--log-format",
    ),
}
