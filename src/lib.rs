//! Dassie: one broker, two protocols, one log.
