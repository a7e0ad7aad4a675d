//! Headers of finding single messages: VIEW_MESSAGE_BY_ID (33) and QUERY_MESSAGE (12).

use super::headers;

headers! {
    /// VIEW_MESSAGE_BY_ID (33); the answer's body is one record.
    pub struct ViewMessage<'a> {
        /// The topic; only newer Java clients send it.
        topic: Option<&'a str> = "topic",
        /// The physical offset.
        offset: i64 = "offset",
    }

    /// QUERY_MESSAGE (12); the answer's body holds the records found.
    pub struct QueryMessage<'a> {
        /// The topic.
        topic: &'a str = "topic",
        /// The key.
        key: &'a str = "key",
        /// How many at most.
        max_num: i32 = "maxNum",
        /// Store time from, in ms since 1970.
        begin_timestamp: i64 = "beginTimestamp",
        /// Store time to, in ms since 1970.
        end_timestamp: i64 = "endTimestamp",
        /// Whether the key is a unique key. Clients up to 4.9.3 leave this field out of their signature.
        unique_key: Option<bool> = "_UNIQUE_KEY_QUERY",
        /// Which index (5.5).
        index_type: Option<&'a str> = "indexType",
        /// The last key seen, for paging (5.5).
        last_key: Option<&'a str> = "lastKey",
    }

    /// The answer to [`QueryMessage`].
    pub struct QueryMessageAnswer {
        /// The store time up to which the index reaches.
        index_last_update_timestamp: i64 = "indexLastUpdateTimestamp",
        /// The physical offset up to which the index reaches.
        index_last_update_phyoffset: i64 = "indexLastUpdatePhyoffset",
    }
}
