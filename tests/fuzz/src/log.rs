//! Log records, applied one after the other; the state that comes of them adds up, and survives a snapshot.

use strandline_metadata::invariants;
use strandline_metadata::record::Record;
use strandline_metadata::snapshot;
use strandline_metadata::state::{Position, State};
use strandline_storage::store::ObjectStoreBackend;

use crate::{pieces, world};

/// Brokers that write.
const INCARNATIONS: i64 = 3;

pub(crate) fn run(data: &[u8]) {
    let mut state = State::default();
    let mut sequences = [0; INCARNATIONS as usize + 1];
    for (revision, piece) in (2..).zip(pieces(data)) {
        let Some((who, bytes)) = piece.split_first() else { continue };
        let Ok((record, body)) = Record::from_bytes(bytes) else { continue };
        let incarnation = 1 + i64::from(*who) % INCARNATIONS;
        let sequence = &mut sequences[incarnation as usize];
        *sequence += 1;
        let at = Position { revision, sequence: *sequence, incarnation };
        if state.apply(at, &record, &body).is_err() {
            // A broker stops here.
            break;
        }
        state.advance(revision);
    }
    if let Err(violation) = invariants::check(&state) {
        panic!("{violation}");
    }
    world::block_on(async {
        let store = ObjectStoreBackend::memory();
        snapshot::write(&store, &state, None).await.expect("a state is written and read back");
    });
}
