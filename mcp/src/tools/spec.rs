//! What a tool takes and what it answers, as data: the JSON schemas that are published and the
//! checks that are made come from the same tables, so a constraint that is advertised is one that
//! holds.

use serde_json::{Map, Value, json};

use crate::access::Scope;
use crate::clock::parse_rfc3339;
use crate::limits::{DEFAULT_LIMIT, MAX_LIMIT_ARGUMENT};

/// What a parameter takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// A text of at most so many bytes.
    Text(usize),
    /// A whole number within these bounds.
    Int(i64, i64),
    /// `true` or `false`.
    Flag,
    /// One of these.
    OneOf(&'static [&'static str]),
    /// At most so many texts.
    Texts(usize),
    /// At most so many whole numbers from 0 on.
    Ints(usize),
    /// A time in RFC 3339.
    Time,
    /// A map of texts.
    Map,
}

/// One parameter.
#[derive(Clone, Copy, Debug)]
pub struct Param {
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Whether it must be given.
    pub required: bool,
    /// What it is for; empty where the name says it.
    pub help: &'static str,
}

/// A parameter that may be left out.
pub const fn optional(name: &'static str, kind: Kind, help: &'static str) -> Param {
    Param { name, kind, required: false, help }
}

/// A parameter that must be given.
pub const fn required(name: &'static str, kind: Kind, help: &'static str) -> Param {
    Param { name, kind, required: true, help }
}

/// Bytes of a topic's name.
pub const TOPIC: Kind = Kind::Text(249);
/// Bytes of a group's id.
pub const GROUP: Kind = Kind::Text(1024);
/// The windows that have a name.
pub const WINDOWS: &[&str] = &["5m", "15m", "1h", "6h", "24h"];
/// How many entries.
pub const LIMIT: Param = optional("limit", Kind::Int(1, MAX_LIMIT_ARGUMENT), "");
/// Where to go on.
pub const CURSOR: Param = optional("cursor", Kind::Text(1024), "next_cursor of the answer before");
/// Which time.
pub const WINDOW: Param = optional("window", Kind::OneOf(WINDOWS), "until now");
/// From when.
pub const START: Param = optional("start", Kind::Time, "instead of window");
/// Until when.
pub const END: Param = optional("end", Kind::Time, "");

/// A tool as it is published.
#[derive(Clone, Copy, Debug)]
pub struct ToolSpec {
    /// Its name.
    pub name: &'static str,
    /// Its title.
    pub title: &'static str,
    /// What it is for; the first sentence has the words that people search by.
    pub description: &'static str,
    /// Who may call it.
    pub scope: Scope,
    /// What it counts for in the limit of calls.
    pub cost: u32,
    /// What it takes.
    pub params: &'static [Param],
    /// What it answers, in the notation of [`schema_of`].
    pub output: &'static str,
}

/// Arguments that were checked.
#[derive(Clone, Debug, Default)]
pub struct Args {
    values: Map<String, Value>,
}

impl Args {
    /// Checks arguments against a table. The sentence says what is wrong with which.
    pub fn check(params: &[Param], given: Option<Map<String, Value>>) -> Result<Self, String> {
        let mut values = given.unwrap_or_default();
        // What is null is not given: some clients fill every field.
        values.retain(|_, value| !value.is_null());
        for (name, value) in &values {
            let Some(param) = params.iter().find(|p| p.name == name) else {
                let known: Vec<&str> = params.iter().map(|p| p.name).collect();
                return Err(format!(
                    "there is no argument {:?}; there are: {}",
                    crate::foreign::clean(name),
                    if known.is_empty() { "none".to_owned() } else { known.join(", ") }
                ));
            };
            check_value(param, value)?;
        }
        match params.iter().find(|p| p.required && !values.contains_key(p.name)) {
            Some(missing) => Err(format!("{} is missing", missing.name)),
            None => Ok(Self { values }),
        }
    }

    /// A text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name).and_then(Value::as_str)
    }

    /// A whole number.
    pub fn int(&self, name: &str) -> Option<i64> {
        self.values.get(name).and_then(Value::as_i64)
    }

    /// `true` or `false`; `false` if it was not given.
    pub fn flag(&self, name: &str) -> bool {
        self.values.get(name).and_then(Value::as_bool).unwrap_or_default()
    }

    /// Several texts; `None` if not given or empty, which both mean: all.
    pub fn texts(&self, name: &str) -> Option<Vec<&str>> {
        let list: Vec<&str> = self.values.get(name)?.as_array()?.iter().filter_map(Value::as_str).collect();
        (!list.is_empty()).then_some(list)
    }

    /// Several numbers; `None` if not given or empty.
    pub fn ints(&self, name: &str) -> Option<Vec<i64>> {
        let list: Vec<i64> = self.values.get(name)?.as_array()?.iter().filter_map(Value::as_i64).collect();
        (!list.is_empty()).then_some(list)
    }

    /// A map of texts.
    pub fn map(&self, name: &str) -> Option<Vec<(&str, &str)>> {
        let map = self.values.get(name)?.as_object()?;
        Some(map.iter().filter_map(|(k, v)| Some((k.as_str(), v.as_str()?))).collect())
    }

    /// A time, in ms since 1970.
    pub fn time(&self, name: &str) -> Option<i64> {
        self.text(name).and_then(parse_rfc3339)
    }

    /// How many entries are wanted.
    pub fn limit(&self) -> usize {
        self.int("limit").and_then(|n| usize::try_from(n).ok()).unwrap_or(DEFAULT_LIMIT)
    }

    /// The arguments without the cursor, in a canonical form: what a cursor is bound to.
    pub fn canonical(&self) -> String {
        let rest: std::collections::BTreeMap<&String, &Value> =
            self.values.iter().filter(|(name, _)| *name != "cursor").collect();
        serde_json::to_string(&rest).unwrap_or_default()
    }
}

fn check_value(param: &Param, value: &Value) -> Result<(), String> {
    let name = param.name;
    let text_of = |value: &Value, most: usize| match value.as_str() {
        Some(text) if text.len() <= most => Ok(()),
        Some(_) => Err(format!("{name}: a text of at most {most} bytes")),
        None => Err(format!("{name}: it takes a text")),
    };
    match param.kind {
        Kind::Text(most) => text_of(value, most),
        Kind::Int(least, most) => match value.as_i64() {
            Some(n) if (least..=most).contains(&n) => Ok(()),
            _ => Err(format!("{name}: it takes a whole number from {least} to {most}")),
        },
        Kind::Flag => value.as_bool().map(|_| ()).ok_or_else(|| format!("{name}: it takes true or false")),
        Kind::OneOf(allowed) => match value.as_str() {
            Some(text) if allowed.contains(&text) => Ok(()),
            _ => Err(format!("{name}: it is one of {}", allowed.join(", "))),
        },
        Kind::Texts(most) => match value.as_array() {
            Some(list) if list.len() <= most => list.iter().try_for_each(|v| text_of(v, 1024)),
            _ => Err(format!("{name}: it takes a list of at most {most} texts")),
        },
        Kind::Ints(most) => match value.as_array() {
            Some(list) if list.len() <= most && list.iter().all(|v| v.as_u64().is_some()) => Ok(()),
            _ => Err(format!("{name}: it takes a list of at most {most} whole numbers from 0 on")),
        },
        Kind::Time => match value.as_str().and_then(parse_rfc3339) {
            Some(_) => Ok(()),
            None => Err(format!("{name}: it takes a time, as 2026-01-31T12:00:00Z")),
        },
        Kind::Map => match value.as_object() {
            Some(map) if map.len() <= 50 => map.values().try_for_each(|v| text_of(v, 4096)),
            _ => Err(format!("{name}: it takes an object of at most 50 texts")),
        },
    }
}

/// The JSON schema of a tool's arguments.
pub fn input_schema(params: &[Param]) -> Map<String, Value> {
    let mut properties = Map::new();
    for param in params {
        let mut schema = match param.kind {
            Kind::Text(most) => json!({"type": "string", "maxLength": most}),
            Kind::Int(least, most) if most == i64::MAX => json!({"type": "integer", "minimum": least}),
            Kind::Int(least, most) => json!({"type": "integer", "minimum": least, "maximum": most}),
            Kind::Flag => json!({"type": "boolean"}),
            Kind::OneOf(allowed) => json!({"type": "string", "enum": allowed}),
            Kind::Texts(most) => json!({"type": "array", "items": {"type": "string"}, "maxItems": most}),
            Kind::Ints(most) => {
                json!({"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": most})
            }
            Kind::Time => json!({"type": "string", "format": "date-time"}),
            Kind::Map => json!({"type": "object", "additionalProperties": {"type": "string"}}),
        };
        if let (Some(schema), false) = (schema.as_object_mut(), param.help.is_empty()) {
            schema.insert("description".to_owned(), Value::from(param.help));
        }
        properties.insert(param.name.to_owned(), schema);
    }
    let mut schema = Map::new();
    schema.insert("type".to_owned(), Value::from("object"));
    schema.insert("properties".to_owned(), Value::Object(properties));
    let required: Vec<&str> = params.iter().filter(|p| p.required).map(|p| p.name).collect();
    if !required.is_empty() {
        schema.insert("required".to_owned(), Value::from(required));
    }
    schema.insert("additionalProperties".to_owned(), Value::from(false));
    schema
}

/// The JSON schema of a tool's answer, as it is published: its own fields, if it is no error.
pub fn output_schema(output: &str) -> Map<String, Value> {
    let own = schema_of(output);
    let mut properties = own.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
    // A catalogue is read by a model in each conversation: what does not help it is left out.
    // `error`, `meta` and `next_cursor` are the same for every tool, and the instructions speak of
    // them; an answer has either `error` or all of the tool's own fields, and `meta` always.
    // Answers are held to the whole of it by [`full_schema`], in tests.
    properties.remove("next_cursor");
    for property in properties.values_mut() {
        *property = outlined(property);
    }
    let mut schema = Map::new();
    schema.insert("type".to_owned(), Value::from("object"));
    schema.insert("properties".to_owned(), Value::Object(properties));
    schema
}

/// The schema that answers really keep to: the tool's own fields, all of them and no others, and
/// `meta`.
pub fn full_schema(output: &str) -> Value {
    let mut schema = schema_of(output);
    schema["properties"]["meta"] = schema_of(META);
    if let Some(required) = schema["required"].as_array_mut() {
        required.push("meta".into());
    }
    close(&mut schema);
    schema
}

fn close(schema: &mut Value) {
    if let Some(map) = schema.as_object_mut() {
        if map.contains_key("properties") {
            map.insert("additionalProperties".to_owned(), false.into());
        }
        map.values_mut().for_each(close);
    }
}

/// Below the top level, the names of fields and the words to choose from are enough: they stand in
/// a description. A model reads them there for a third of what a schema costs, and no client has to
/// make sense of a schema that says nothing.
fn outlined(schema: &Value) -> Value {
    if let Some(branches) = schema.get("anyOf").and_then(Value::as_array) {
        return json!({"anyOf": branches.iter().map(outlined).collect::<Vec<_>>()});
    }
    if schema.get("properties").is_some() {
        return json!({"type": "object", "description": outline(schema)});
    }
    match schema.get("items") {
        Some(items) => json!({"type": "array", "items": outlined(items)}),
        None => schema.clone(),
    }
}

/// The fields of an object, as `a, b (x|y), c {d, e}`.
fn outline(schema: &Value) -> String {
    let fields = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
    let fields: Vec<String> = fields.map(|(name, field)| format!("{name}{}", outline_of(field))).collect();
    fields.join(", ")
}

/// What of a field is worth a word.
fn outline_of(field: &Value) -> String {
    let null = json!({"type": "null"});
    if let Some(branches) = field.get("anyOf").and_then(Value::as_array) {
        return branches.iter().filter(|b| **b != null).map(outline_of).collect();
    }
    if field.get("properties").is_some() {
        return format!(" {{{}}}", outline(field));
    }
    if let Some(items) = field.get("items").filter(|items| items.get("properties").is_some()) {
        return format!(" [{{{}}}]", outline(items));
    }
    let words = field.get("enum").and_then(Value::as_array).into_iter().flatten();
    let words: Vec<&str> = words.filter_map(Value::as_str).collect();
    if words.is_empty() { String::new() } else { format!(" ({})", words.join("|")) }
}

/// An error, as every tool may answer it.
pub const ERROR: &str = "{code:s,message:s,retryable:b,retry_after_ms:i?,suggestions:[s],request_id:s}";

/// What `meta` is; published once, in the instructions of the server and in the documentation,
/// since every tool has it.
pub const META: &str = "{schema_version:s,request_id:s,principal:s,cluster_id:s?,observed_at:s,etcd_revision:i?,freshness_ms:i?,partial:b,warnings:[{code:s,message:s}],window:{start:s,end:s,step_s:i,samples:i}?,sources:[{source:s,status:(ok|stale|failed|absent),age_ms:i?}]}";

/// A JSON schema from a short notation: `s` text, `i` whole number, `n` number, `b` truth value,
/// `*` anything, `(a|b)` one of these words, `[x]` a list, `<x>` a map from names, `{a:x,b:y}` an
/// object that has all these fields; `?` behind a type allows null.
pub fn schema_of(notation: &str) -> Value {
    let mut rest = notation;
    let schema = one(&mut rest);
    assert!(rest.is_empty(), "{notation:?} goes on with {rest:?}");
    schema
}

fn one(rest: &mut &str) -> Value {
    let mut chars = rest.chars();
    let first = chars.next();
    *rest = chars.as_str();
    let schema = match first {
        Some('s') => json!({"type": "string"}),
        Some('i') => json!({"type": "integer"}),
        Some('n') => json!({"type": "number"}),
        Some('b') => json!({"type": "boolean"}),
        // Nothing is said of it.
        Some('*') => json!({}),
        Some('(') => {
            let (words, behind) = rest.split_once(')').unwrap_or((rest, ""));
            *rest = behind;
            json!({"enum": words.split('|').collect::<Vec<_>>()})
        }
        Some('[') => {
            let items = one(rest);
            take(rest, ']');
            json!({"type": "array", "items": items})
        }
        Some('<') => {
            let values = one(rest);
            take(rest, '>');
            json!({"type": "object", "additionalProperties": values})
        }
        Some('{') => object(rest),
        other => unreachable!("{other:?} begins no type, before {rest:?}"),
    };
    if !rest.starts_with('?') {
        return schema;
    }
    take(rest, '?');
    nullable(schema)
}

fn object(rest: &mut &str) -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    while !rest.starts_with('}') {
        let (name, behind) = rest.split_once(':').unwrap_or((rest, ""));
        *rest = behind;
        required.push(name.to_owned());
        properties.insert(name.to_owned(), one(rest));
        if rest.starts_with(',') {
            take(rest, ',');
        }
    }
    take(rest, '}');
    json!({"type": "object", "properties": properties, "required": required})
}

fn take(rest: &mut &str, expected: char) {
    assert!(rest.starts_with(expected), "{expected:?} instead of {rest:?}");
    *rest = rest.get(expected.len_utf8()..).unwrap_or_default();
}

/// The same or null. Not as a list of types, which not every client understands.
fn nullable(mut schema: Value) -> Value {
    if let Some(words) = schema.get_mut("enum").and_then(Value::as_array_mut) {
        words.push(Value::Null);
        return schema;
    }
    json!({"anyOf": [schema, {"type": "null"}]})
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMS: &[Param] = &[
        required("group_id", GROUP, "The group"),
        optional("topics", Kind::Texts(2), ""),
        LIMIT,
        WINDOW,
        START,
        optional("partitions", Kind::Ints(3), ""),
    ];

    fn check(json: &Value) -> Result<Args, String> {
        Args::check(PARAMS, json.as_object().cloned())
    }

    #[test]
    fn what_is_advertised_holds() {
        let args =
            check(&json!({"group_id": "g", "topics": null, "limit": 200, "window": "5m", "partitions": [1]}))
                .unwrap();
        assert_eq!((args.text("group_id"), args.limit(), args.texts("topics")), (Some("g"), 200, None));
        for (bad, named) in [
            (json!({}), "group_id"),
            (json!({"group_id": 7}), "group_id"),
            (json!({"group_id": "x".repeat(1025)}), "1024"),
            (json!({"group_id": "g", "limit": 0}), "limit"),
            (json!({"group_id": "g", "limit": 201}), "200"),
            (json!({"group_id": "g", "limit": 1.5}), "limit"),
            (json!({"group_id": "g", "topics": ["a", "b", "c"]}), "topics"),
            (json!({"group_id": "g", "topics": "a"}), "topics"),
            (json!({"group_id": "g", "topics": [1]}), "topics"),
            (json!({"group_id": "g", "window": "2h"}), "5m"),
            (json!({"group_id": "g", "start": "yesterday"}), "start"),
            (json!({"group_id": "g", "partitions": [-1]}), "partitions"),
            (json!({"group_id": "g", "gruop": 1}), "gruop"),
        ] {
            let why = check(&bad).unwrap_err();
            assert!(why.contains(named), "{why}");
        }
        let schema = Value::Object(input_schema(PARAMS));
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["properties"]["limit"], json!({"type": "integer", "minimum": 1, "maximum": 200}));
    }

    #[test]
    fn a_notation_becomes_a_schema() {
        let schema = schema_of("{a:s?,b:[{c:i}],d:(x|y)?,e:<n>,f:*}");
        assert_eq!(schema["properties"]["a"], json!({"anyOf": [{"type": "string"}, {"type": "null"}]}));
        assert_eq!(schema["properties"]["b"]["items"]["required"], json!(["c"]));
        assert_eq!(schema["properties"]["d"]["enum"], json!(["x", "y", null]));
        assert_eq!(schema["properties"]["e"]["additionalProperties"]["type"], "number");
        assert_eq!(schema["required"], json!(["a", "b", "d", "e", "f"]));
        let published = Value::Object(output_schema("{a:s,next_cursor:s?}"));
        assert_eq!(published, json!({"type": "object", "properties": {"a": {"type": "string"}}}));
        let whole = full_schema("{a:s,next_cursor:s?}");
        assert_eq!(whole["required"], json!(["a", "next_cursor", "meta"]));
        schema_of(META);
        schema_of(ERROR);
        let nested = Value::Object(output_schema("{a:[{b:{c:s},d:(x|y)?,e:[{f:i?}]?}]?,g:{h:n}}"));
        let item = json!({"type": "object", "description": "b {c}, d (x|y), e [{f}]"});
        let list = json!({"anyOf": [{"type": "array", "items": item}, {"type": "null"}]});
        assert_eq!(nested["properties"]["a"], list);
        assert_eq!(nested["properties"]["g"], json!({"type": "object", "description": "h"}));
    }
}
