//! What a client says on a connection.

use crate::{pieces, world};

/// Bit of the first byte: the rest is said as it is. Otherwise it is cut into pieces, and each of
/// them said as a frame of the right length.
const RAW: u8 = 1;

pub(crate) fn run(data: &[u8]) {
    let Some((how, rest)) = data.split_first() else { return };
    let mut said = Vec::new();
    if how & RAW != 0 {
        said.extend(rest);
    } else {
        for piece in pieces(rest) {
            said.extend((piece.len() as i32).to_be_bytes());
            said.extend(piece);
        }
    }
    world::block_on(async {
        let opened = world::broker().await;
        world::say(&opened, &said).await;
        // Whatever it was told, it serves.
        let still = world::say(&opened, &crate::seeds::api_versions()).await;
        assert_eq!(still.len(), 1, "the broker serves on");
    });
}
