"""From a model to its channel groups: record a tape, label it, connect what is coupled."""
