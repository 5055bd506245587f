//! What a cluster is made of.

use std::fmt::Display;
use std::path::PathBuf;

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many brokers.
    pub brokers: usize,
    /// Flags of every broker, without dashes; they come after the harness's own.
    pub flags: Vec<(&'static str, String)>,
    /// Flags of etcd, with their dashes; they come after the harness's own.
    pub etcd_flags: Vec<String>,
    /// How many members etcd has.
    pub etcd_members: usize,
    /// Whether each broker reaches etcd and S3 through proxies, so that its links can be cut.
    pub proxies: bool,
    /// Whether clients reach brokers, and members of etcd each other, through proxies too.
    pub all_proxies: bool,
    /// Whether objects are files, which can be damaged; otherwise they are in the S3 server's
    /// memory.
    pub folder: bool,
    /// How many file descriptors a broker may have.
    pub descriptors: Option<u32>,
    /// What brokers run at first instead of the build that is tested.
    pub program: Option<PathBuf>,
}

impl Plan {
    /// So many brokers, with flushes that are quicker than the defaults: a test does not wait for a
    /// bill.
    pub fn new(brokers: usize) -> Self {
        let flags = [("linger-ms", "20"), ("put-budget-per-s", "100"), ("put-budget-burst", "20")];
        let flags = flags.into_iter().map(|(k, v)| (k, v.to_owned())).collect();
        Self {
            brokers,
            flags,
            etcd_flags: Vec::new(),
            etcd_members: 1,
            proxies: false,
            all_proxies: false,
            folder: false,
            descriptors: None,
            program: None,
        }
    }

    /// With brokers that run this program at first.
    #[must_use]
    pub fn program(mut self, program: PathBuf) -> Self {
        self.program = Some(program);
        self
    }

    /// With so few file descriptors for each broker.
    #[must_use]
    pub fn descriptors(mut self, most: u32) -> Self {
        self.descriptors = Some(most);
        self
    }

    /// With this flag for every broker.
    #[must_use]
    pub fn flag(mut self, name: &'static str, value: impl Display) -> Self {
        self.flags.push((name, value.to_string()));
        self
    }

    /// With this flag for etcd.
    #[must_use]
    pub fn etcd_flag(mut self, flag: impl Display) -> Self {
        self.etcd_flags.push(flag.to_string());
        self
    }

    /// With so many members of etcd.
    #[must_use]
    pub fn etcd_members(mut self, members: usize) -> Self {
        self.etcd_members = members;
        self
    }

    /// With proxies before everything: any link can be cut.
    #[must_use]
    pub fn all_proxied(mut self) -> Self {
        (self.proxies, self.all_proxies) = (true, true);
        self
    }

    /// With proxies before etcd and S3.
    #[must_use]
    pub fn proxied(mut self) -> Self {
        self.proxies = true;
        self
    }

    /// With objects in files.
    #[must_use]
    pub fn in_folder(mut self) -> Self {
        self.folder = true;
        self
    }
}
