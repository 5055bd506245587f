//! Who asks, and what may have to be allowed: Kafka's principals, resources and operations. Nothing
//! is forbidden until there are ACLs; the table of APIs says already what each one will ask for.

use std::borrow::Cow;
use std::fmt;

/// On whose behalf a request is: Kafka's `KafkaPrincipal`, for example `User:alice`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Principal {
    /// Its type; `User` but for what an operator's own builder makes.
    pub(crate) kind: Cow<'static, str>,
    /// Its name.
    pub(crate) name: Cow<'static, str>,
}

impl Principal {
    /// Whoever comes without saying who they are.
    pub(crate) const ANONYMOUS: Self = Self { kind: Cow::Borrowed("User"), name: Cow::Borrowed("ANONYMOUS") };
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.name)
    }
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Read,
    Write,
    Create,
    Delete,
    Alter,
    Describe,
    DescribeConfigs,
    AlterConfigs,
    IdempotentWrite,
}

/// The kind of thing that it is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResourceType {
    Topic,
    Group,
    Cluster,
    TransactionalId,
}

/// Something that a principal may have to be allowed to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) operation: Operation,
    pub(crate) resource: ResourceType,
}

/// A list of [`Access`]: `access![Read Group, Describe Topic]`.
macro_rules! access {
    ($($operation:ident $resource:ident),*) => {
        &[$($crate::api::access::Access {
            operation: $crate::api::access::Operation::$operation,
            resource: $crate::api::access::ResourceType::$resource,
        }),*]
    };
}
pub(crate) use access;

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::ApiKey;

    use super::*;
    use crate::api::SUPPORTED;

    /// As Kafka's documentation has it ("Operations and resources on protocols").
    #[test]
    fn every_api_says_what_it_will_ask_for() {
        let of = |key: ApiKey| SUPPORTED.iter().find(|api| api.key == key).map_or(&[][..], |api| api.access);
        assert_eq!(of(ApiKey::Fetch), access![Read Topic]);
        assert_eq!(of(ApiKey::Produce), access![Write TransactionalId, IdempotentWrite Cluster, Write Topic]);
        assert_eq!(of(ApiKey::OffsetFetch), access![Describe Group, Describe Topic]);
        assert_eq!(of(ApiKey::ListGroups), access![Describe Cluster, Describe Group]);
        // Anybody may ask what is spoken, and say how a client is doing.
        let open = [ApiKey::ApiVersions, ApiKey::GetTelemetrySubscriptions, ApiKey::PushTelemetry];
        for api in SUPPORTED {
            assert_eq!(api.access.is_empty(), open.contains(&api.key), "{:?}", api.key);
        }
    }

    #[test]
    fn a_principal_is_written_as_kafka_writes_it() {
        assert_eq!(Principal::ANONYMOUS.to_string(), "User:ANONYMOUS");
    }
}
