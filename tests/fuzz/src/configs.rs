//! Settings files of the broker and the observer, and the observer's files of tokens.

use std::io::Write;

use tempfile::NamedTempFile;

/// The first byte says whose file it is.
pub(crate) fn run(data: &[u8]) {
    let Some((whose, text)) = data.split_first() else { return };
    let mut file = NamedTempFile::new().expect("a file");
    file.write_all(text).expect("it is written");
    let path = file.path().to_string_lossy().into_owned();
    let flags = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<String>>();
    match whose % 3 {
        0 => {
            let _ = strandline_broker::config::parse(flags(&["--config", &path]), |_| None);
        }
        1 => {
            let _ = strandline_mcp::config::parse(flags(&["--config", &path]), |_| None);
        }
        _ => {
            let parsed =
                strandline_mcp::config::parse(flags(&["--tokens-file", &path, "--audit-log", "off"]), |_| {
                    None
                });
            if let Ok(strandline_mcp::config::Parsed::Run(config)) = parsed {
                let _ = crate::world::block_on(async { crate::observer::open(*config) });
            }
        }
    }
}
