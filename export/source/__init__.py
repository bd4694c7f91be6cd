"""An exported network is written out as plain torch that people read: model.py."""
