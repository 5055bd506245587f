//! Log records, applied one after the other, and a snapshot of what comes of them.
//!
//! Brokers trust each other's records as far as they are records: one that names an object which
//! another one has named before makes a state that contradicts itself, and the audit and the
//! snapshot's writer say so. Nothing may panic.

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
    let sound = invariants::check(&state).is_ok();
    world::block_on(async {
        let store = ObjectStoreBackend::memory();
        let written = snapshot::SnapshotWriter::default()
            .write(&store, &state, snapshot::SnapshotStamp::default(), None)
            .await;
        assert!(written.is_ok() || !sound, "a sound state is written and read back: {written:?}");
    });
}
