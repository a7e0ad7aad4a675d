//! Lists: filtered, cut into pages as tools ask for them, and made while they are read.
//!
//! Owns: RabbitMQ's parameters `page`, `page_size`, `name`, `use_regex`, `pagination`, `columns`.
//! Promises: at most [`limits::HTTP_PAGE_ROWS`] rows are made at a time, and no more before a reader took them; who reads slowly holds
//! names, not rows. Does not know: what rows are.

use std::future::Future;

use bytes::Bytes;
use regex::RegexBuilder;
use serde_json::{Map, Value, json};

use super::super::body::Body;
use super::call::Call;
use super::{Answer, Answered, Problem};
use crate::limits;

/// Rows of a page without `page_size`.
const PAGE_SIZE: usize = 100;
/// Most of them.
const PAGE_SIZE_MAX: usize = 500;

/// Makes rows of keys.
pub(super) trait Rows: Send + 'static {
    /// What a row is made of.
    type Key: Send + 'static;
    /// What `name=` is compared with.
    fn name<'a>(&self, key: &'a Self::Key) -> std::borrow::Cow<'a, str>;
    /// The rows; `None`: the broker is ending.
    fn make(&mut self, keys: Vec<Self::Key>) -> impl Future<Output = Option<Vec<Value>>> + Send;
}

/// Rows that need nobody.
pub(super) struct Plain<K, N, V> {
    pub(super) name: N,
    pub(super) view: V,
    pub(super) keys: std::marker::PhantomData<K>,
}

/// Rows made by a function of the key.
pub(super) fn plain<K, N, V>(name: N, view: V) -> Plain<K, N, V>
where
    K: Send + 'static,
    N: Fn(&K) -> String + Send + 'static,
    V: Fn(K) -> Value + Send + 'static,
{
    Plain { name, view, keys: std::marker::PhantomData }
}

impl<K, N, V> Rows for Plain<K, N, V>
where
    K: Send + 'static,
    N: Fn(&K) -> String + Send + 'static,
    V: Fn(K) -> Value + Send + 'static,
{
    type Key = K;

    fn name<'a>(&self, key: &'a K) -> std::borrow::Cow<'a, str> {
        (self.name)(key).into()
    }

    fn make(&mut self, keys: Vec<K>) -> impl Future<Output = Option<Vec<Value>>> + Send {
        std::future::ready(Some(keys.into_iter().map(&self.view).collect()))
    }
}

/// Answers with the rows of these keys, in their order.
pub(super) async fn answer<R: Rows>(call: &Call, keys: Vec<R::Key>, mut rows: R) -> Answered {
    call.only_get()?;
    let columns = Columns::of(call);
    let total = keys.len();
    let keys = filter(call, keys, &rows)?;
    let Some(page) = Page::of(call)? else {
        let (pieces, body) = Body::made();
        tokio::spawn(async move {
            let mut keys = keys.into_iter();
            let mut begin = "[";
            loop {
                let some: Vec<R::Key> = keys.by_ref().take(limits::HTTP_PAGE_ROWS).collect();
                let more = !some.is_empty();
                // An ending broker cuts the list off: what was sent does not parse as a whole one.
                let made = if more { rows.make(some).await } else { Some(Vec::new()) };
                let Some(made) = made else { return };
                let mut text = String::new();
                for row in made {
                    text.push_str(begin);
                    begin = ",";
                    text.push_str(&columns.cut(row).to_string());
                }
                if !more {
                    text.push_str(if begin == "[" { "[]" } else { "]" });
                }
                // Nobody reads any more.
                if pieces.send(Bytes::from(text)).await.is_err() || !more {
                    return;
                }
            }
        });
        return Ok(Answer::Made(body));
    };
    let filtered = keys.len();
    let pages = filtered.div_ceil(page.size).max(1);
    if page.number > pages {
        let text = format!("page_out_of_range: page {} of {pages}", page.number);
        return Err(Problem::bad_request(text));
    }
    let some: Vec<R::Key> = keys.into_iter().skip((page.number - 1) * page.size).take(page.size).collect();
    let made = rows.make(some).await.ok_or_else(|| Problem::unavailable("the broker is ending"))?;
    let items: Vec<Value> = made.into_iter().map(|row| columns.cut(row)).collect();
    Ok(Answer::Json(json!({
        "total_count": total,
        "item_count": items.len(),
        "filtered_count": filtered,
        "page": page.number,
        "page_size": page.size,
        "page_count": pages,
        "items": items,
    })))
}

fn filter<R: Rows>(call: &Call, keys: Vec<R::Key>, rows: &R) -> Result<Vec<R::Key>, Problem> {
    let Some(name) = call.parameter("name").filter(|name| !name.is_empty()) else { return Ok(keys) };
    if call.parameter("use_regex") == Some("true") {
        let pattern = RegexBuilder::new(name)
            .size_limit(limits::PATTERN_COMPILED_MAX)
            .case_insensitive(true)
            .build()
            .map_err(|_| Problem::bad_request("invalid regular expression"))?;
        return Ok(keys.into_iter().filter(|key| pattern.is_match(&rows.name(key))).collect());
    }
    let name = name.to_lowercase();
    Ok(keys.into_iter().filter(|key| rows.name(key).to_lowercase().contains(&name)).collect())
}

struct Page {
    number: usize,
    size: usize,
}

impl Page {
    fn of(call: &Call) -> Result<Option<Self>, Problem> {
        let number = |name: &str| {
            let bad = || Problem::bad_request(format!("invalid {name}"));
            call.parameter(name).map(|text| text.parse::<usize>().map_err(|_| bad())).transpose()
        };
        let (page, size) = (number("page")?, number("page_size")?);
        if page.is_none() && size.is_none() {
            return Ok(None);
        }
        let (page, size) = (page.unwrap_or(1), size.unwrap_or(PAGE_SIZE));
        if page == 0 || size == 0 || size > PAGE_SIZE_MAX {
            let text = format!("page begins at 1, page_size is between 1 and {PAGE_SIZE_MAX}");
            return Err(Problem::bad_request(text));
        }
        Ok(Some(Self { number: page, size }))
    }
}

/// Which members of a row are wanted; none named: all. `a.b` is member `b` of member `a`.
struct Columns(Vec<Vec<String>>);

impl Columns {
    fn of(call: &Call) -> Self {
        let names = call.parameter("columns").unwrap_or_default().split(',').filter(|name| !name.is_empty());
        Self(names.map(|name| name.split('.').map(str::to_owned).collect()).collect())
    }

    fn cut(&self, row: Value) -> Value {
        if self.0.is_empty() {
            return row;
        }
        let mut kept = Map::new();
        for path in &self.0 {
            let found = path.iter().try_fold(&row, |value, name| value.get(name));
            if let Some(found) = found {
                put(&mut kept, path, found.clone());
            }
        }
        Value::Object(kept)
    }
}

fn put(into: &mut Map<String, Value>, path: &[String], value: Value) {
    let [first, rest @ ..] = path else { return };
    if rest.is_empty() {
        into.insert(first.clone(), value);
    } else if let Value::Object(inner) = into.entry(first.clone()).or_insert_with(|| json!({})) {
        put(inner, rest, value);
    }
}
