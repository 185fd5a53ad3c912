//! culvert-keymgr
