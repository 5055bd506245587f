//! The protocol of KIP-848: the coordinator assigns.
