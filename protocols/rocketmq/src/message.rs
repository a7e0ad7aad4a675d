//! Messages: the stored record, the batch body, properties, ids, names, tags, compression.
//!
//! Owns the shapes and the rules that hold wherever a message is read or written. Does not know where records lie,
//! who may send, or what time it is.

mod batch;
mod compression;
mod id;
mod name;
mod properties;
mod record;
mod sys_flag;
mod tag;
pub mod waiting;

pub use batch::{Batch, BatchError, BatchMessage, encode_batch_message};
#[cfg(feature = "compression")]
pub use compression::inflate_bounded;
pub use compression::{Compression, DecompressError, decompress_bounded};
pub use id::{IdError, MessageId, UniqueKey};
pub use name::{
    DLQ_PREFIX, MAX_GROUP, MAX_RETRY_TOPIC, MAX_TOPIC, NameError, RETRY_PREFIX, check_group, check_topic,
    is_system_topic, is_unsendable_topic, system_topic,
};
pub use properties::{MAX_PROPERTIES, Properties, PropertiesError, PropertiesText, property};
pub use record::{
    Body, MAGIC_V1, MAGIC_V2, PATCH_PHYSICAL_OFFSET, PATCH_QUEUE_ID, PATCH_QUEUE_OFFSET,
    PATCH_STORE_TIME_BORN_V4, PATCH_STORE_TIME_BORN_V6, Parts, Record, RecordError, StoredMessage, body_crc,
    patch_store_time,
};
pub use sys_flag::{SysFlag, TransactionState};
pub use tag::{MAX_EXPRESSION, SubscriptionError, TagFilter, java_hash, tag_hash};
